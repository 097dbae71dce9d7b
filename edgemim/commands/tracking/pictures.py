"""Pairs as the network sees them: template, search region with the true and the found box, and the score map."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from edgemim.data.tracking.pairs import PairBatch
from edgemim.tasks.tracking import TrackingTask

_CELL_PX = 192
_GAP_PX = 4
_TRUE, _FOUND = (0, 158, 115), (213, 94, 0)


@torch.no_grad()
def paint_pairs(task: TrackingTask, batch: PairBatch, columns: int = 2) -> np.ndarray:
    """uint8 [h, w, 3]: three pictures a pair, several pairs a line. True boxes are green, found ones orange; the brighter
    a cell of the last picture, the higher its score."""
    task.eval()
    device = next(task.model.parameters()).device
    moved = batch.to(device)
    found = task.predict(moved.template, moved.search, moved.template_box).cpu()
    normalised = task.normalization.apply(moved.template), task.normalization.apply(moved.search)
    scores = task.model(*normalised, template_box=moved.template_box).score[:, 0].float().cpu()
    cells = []
    for place in range(len(batch)):
        search = _picture(batch.search[place])
        cells.append(
            [
                _boxed(_picture(batch.template[place]), [(batch.template_box[place], _TRUE)]),
                _boxed(search, [(batch.search_box[place], _TRUE), (found[place], _FOUND)]),
                _lit(search, scores[place]),
            ]
        )
    lines = [
        [picture for pair in cells[start : start + columns] for picture in pair]
        for start in range(0, len(cells), columns)
    ]
    width, height = max(map(len, lines)), len(lines)
    sheet = np.full((height * (_CELL_PX + _GAP_PX), width * (_CELL_PX + _GAP_PX), 3), 255, np.uint8)
    for row, line in enumerate(lines):
        for column, picture in enumerate(line):
            top, left = row * (_CELL_PX + _GAP_PX), column * (_CELL_PX + _GAP_PX)
            sheet[top : top + _CELL_PX, left : left + _CELL_PX] = np.asarray(picture)
    return sheet


def _picture(crop: Tensor) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(crop.cpu().permute(1, 2, 0).numpy()))
    return picture.resize((_CELL_PX, _CELL_PX), Image.Resampling.BILINEAR)


def _boxed(picture: Image.Image, boxes: list[tuple[Tensor, tuple[int, int, int]]]) -> Image.Image:
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for box, colour in boxes:
        left, top, width, height = (float(value) * _CELL_PX for value in box.nan_to_num())
        draw.rectangle((left, top, max(left, left + width), max(top, top + height)), outline=colour, width=2)
    return picture


def _lit(picture: Image.Image, score: Tensor) -> Image.Image:
    grey = np.asarray(picture.convert("L"), np.float32)[..., None] * 0.6
    levels = Image.fromarray((score.clamp(0, 1).numpy() * 255).astype(np.uint8))
    light = np.asarray(levels.resize(picture.size, Image.Resampling.NEAREST), np.float32)[..., None] / 255
    return Image.fromarray((grey * (1 - light) + light * np.array([255, 235, 120], np.float32)).astype(np.uint8))
