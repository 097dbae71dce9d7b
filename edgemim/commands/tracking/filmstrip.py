"""One picture of a sequence: some of its frames side by side, with the true box and those that trackers found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from edgemim.edge.images import ImageError, load_image
from edgemim.edge.tracking.boxes import has_area
from edgemim.edge.tracking.sequences import Sequence as Truth
from edgemim.errors import UserError

_WIDTH, _BAR, _GAP = 320, 20, 4
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
_TRUTH = ("annotation", (255, 255, 255))
# Okabe and Ito's palette, the light ones: told apart with every kind of colour vision, on white's black rim.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 200, 140), (240, 228, 66), (213, 94, 0), (204, 121, 167))


def filmstrip(truth: Truth, found: Mapping[str, np.ndarray], count: int, columns: int = 4) -> np.ndarray:
    """uint8 [h, w, 3]: `count` frames spread from first to last, their numbers, and a line that names the colours.

    `found` maps a tracker's name to its boxes [n, 4]. A frame that cannot be read is grey.
    """
    boxes = {_TRUTH[0]: truth.boxes, **found}
    colours = dict(zip(boxes, (_TRUTH[1], *_COLOURS * (1 + len(found) // len(_COLOURS))), strict=False))
    chosen = np.unique(np.linspace(0, len(truth.frames) - 1, count).round().astype(int))
    cells = [_cell(truth, boxes, colours, int(number)) for number in chosen]
    columns = min(columns, len(cells))
    height = max(cell.shape[0] for cell in cells)
    rows = -(-len(cells) // columns)
    canvas = np.full((rows * (height + _GAP) + _BAR, columns * (_WIDTH + _GAP) - _GAP, 3), 32, np.uint8)
    for place, cell in enumerate(cells):
        top, left = place // columns * (height + _GAP), place % columns * (_WIDTH + _GAP)
        canvas[top : top + cell.shape[0], left : left + _WIDTH] = cell
    left = 4
    for name, colour in colours.items():
        cv2.putText(canvas, name, (left, canvas.shape[0] - 6), _FONT, _SCALE, colour, 1, cv2.LINE_AA)
        left += cv2.getTextSize(name, _FONT, _SCALE, 1)[0][0] + 14
    return canvas


def save_filmstrips(
    folder: Path, truths: Sequence[Truth], found: Mapping[str, Mapping[str, np.ndarray]], count: int
) -> dict[str, Path]:
    """Write SEQUENCE.png for each; `found` maps a tracker's name to boxes by sequence. Raises UserError on a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for truth in truths:
        boxes = {name: of[truth.name] for name, of in found.items() if truth.name in of}
        path = folder / f"{truth.name}.png"
        try:
            Image.fromarray(filmstrip(truth, boxes, count)).save(path)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
            ) from error
        paths[truth.name] = path
    return paths


def _cell(
    truth: Truth, boxes: Mapping[str, np.ndarray], colours: Mapping[str, tuple[int, int, int]], number: int
) -> np.ndarray:
    try:
        image = load_image(truth.frames[number])
    except ImageError:
        image = np.full((_WIDTH * 3 // 4, _WIDTH, 3), 128, np.uint8)
    scale = _WIDTH / image.shape[1]
    cell = cv2.resize(image, (_WIDTH, max(1, round(image.shape[0] * scale))), interpolation=cv2.INTER_AREA)
    for name, rows in boxes.items():
        if number < len(rows) and has_area(rows[number]):
            left, top, width, height = rows[number] * scale
            corners = (round(left), round(top)), (round(left + width), round(top + height))
            cv2.rectangle(cell, *corners, (0, 0, 0), 3)
            cv2.rectangle(cell, *corners, colours[name], 1)
    label = f"{number + 1}" + (" absent" if truth.absent[number] else "")
    cv2.rectangle(cell, (0, 0), (8 + 8 * len(label), 16), (32, 32, 32), cv2.FILLED)
    cv2.putText(cell, label, (4, 12), _FONT, _SCALE, (255, 255, 255), 1, cv2.LINE_AA)
    return cell
