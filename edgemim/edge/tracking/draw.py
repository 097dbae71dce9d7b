"""Box, score and speed drawn on a frame, and drawn frames written as a video or a folder of images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edgemim.edge.tracking.boxes import Box
from edgemim.errors import UserError

VIDEO_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
"""What OpenCV can write without further libraries, by suffix."""

# Red, green, blue; told apart with every kind of colour vision.
_FOUND, _LOST, _DARK, _LIGHT = (0, 200, 140), (230, 90, 0), (0, 0, 0), (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_box(image: np.ndarray, box: Box, text: str, *, lost: bool = False, speed: str = "") -> np.ndarray:
    """A copy of uint8 [h, w, 3] RGB with the box, `text` beside it and `speed` in a corner.

    A lost target's box is of another colour and drawn at its corners only.
    """
    image = image.copy()
    height, width = image.shape[:2]
    thick = max(1, round(min(height, width) / 240))
    left, top = round(box.left), round(box.top)
    right, bottom = round(box.left + box.width), round(box.top + box.height)
    colour = _LOST if lost else _FOUND
    for shade, extra in ((_DARK, 2), (colour, 0)):  # a dark rim shows on any ground
        if lost:
            _corners(image, (left, top, right, bottom), shade, thick + extra)
        else:
            cv2.rectangle(image, (left, top), (right, bottom), shade, thick + extra, cv2.LINE_AA)
    scale = max(0.45, min(height, width) / 800)
    plate = _plate_size(text, scale)
    if top - plate[1] >= 0:
        place = top - plate[1]
    else:  # below, or inside a box that fills the height
        place = bottom if bottom + plate[1] <= height else max(0, top)
    _label(image, text, (left, place), colour, scale)
    if speed:
        _label(image, speed, (0, 0), _LIGHT, scale)
    return image


class FrameSink:
    """Writes frames as a video (by suffix .mp4, .avi, ...) or, given a folder, as 000001.jpg, 000002.jpg, ...

    What was written stays readable when the work ends early, once `close` was called.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.count = 0
        self._fps = fps or 25.0
        self._writer: cv2.VideoWriter | None = None
        self._is_video = path.suffix.lower() in VIDEO_CODECS
        try:
            (path.parent if self._is_video else path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror or error}; choose another --out") from error

    def write(self, image: np.ndarray) -> None:
        """Add one frame, uint8 [h, w, 3] RGB. Raises UserError if it cannot be written."""
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if self._is_video:
            if self._writer is None:
                self._writer = self._open(image.shape[1], image.shape[0])
            self._writer.write(bgr)
        elif not cv2.imwrite(str(self.path / f"{self.count + 1:06d}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise UserError(f"cannot write to {self.path}; free space or choose another --out")
        self.count += 1

    def close(self) -> None:
        """Finish the video. Raises UserError if nothing of it reached the disk."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if not self.path.is_file() or self.path.stat().st_size == 0:
            raise UserError(f"cannot write {self.path}; free space or choose another --out")

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        codec = cv2.VideoWriter.fourcc(*VIDEO_CODECS[self.path.suffix.lower()])
        writer = cv2.VideoWriter(str(self.path), codec, self._fps, (width, height))
        if not writer.isOpened():
            raise UserError(f"cannot write {self.path}, a video of {width}×{height} pixels; choose another --out")
        return writer


def _corners(image: np.ndarray, edges: tuple[int, int, int, int], colour: tuple[int, int, int], thick: int) -> None:
    left, top, right, bottom = edges
    reach_x, reach_y = max(2, (right - left) // 4), max(2, (bottom - top) // 4)
    for x, along in ((left, reach_x), (right, -reach_x)):
        for y, down in ((top, reach_y), (bottom, -reach_y)):
            cv2.line(image, (x, y), (x + along, y), colour, thick, cv2.LINE_AA)
            cv2.line(image, (x, y), (x, y + down), colour, thick, cv2.LINE_AA)


def _plate_size(text: str, scale: float) -> tuple[int, int]:
    (width, height), below = cv2.getTextSize(text, _FONT, scale, _thick(scale))
    return width + 8, height + below + 6


def _label(image: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, int, int], scale: float) -> None:
    """Text on a dark plate, whose left upper corner is moved so that the plate lies in the image."""
    width, height = _plate_size(text, scale)
    left = max(0, min(corner[0], image.shape[1] - width))
    top = max(0, min(corner[1], image.shape[0] - height))
    cv2.rectangle(image, (left, top), (left + width, top + height), _DARK, cv2.FILLED)
    _, below = cv2.getTextSize(text, _FONT, scale, _thick(scale))
    place = (left + 4, top + height - below - 3)
    cv2.putText(image, text, place, _FONT, scale, colour, _thick(scale), cv2.LINE_AA)


def _thick(scale: float) -> int:
    return max(1, round(1.5 * scale))
