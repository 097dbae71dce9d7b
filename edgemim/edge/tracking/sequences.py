"""One tracking sequence: its frames in order, a box for each, and the frames in which the target is absent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgemim.edge.images import IMAGE_SUFFIXES
from edgemim.edge.tracking.boxes import Box, has_area
from edgemim.errors import UserError


class SequenceError(UserError):
    """One sequence cannot be used; others can. The message names it, its file and the remedy."""


@dataclass(frozen=True)
class Sequence:
    """Frames and annotation of one target.

    Boxes stand as in the dataset's file. LaSOT, OTB and UAV123 count pixels from 1, the others from 0; published
    trackers start from these numbers and are scored against them unchanged, so nothing is shifted here.
    """

    name: str
    frames: tuple[Path, ...]
    """In natural order (2 before 10); empty where only the annotation was read."""
    boxes: np.ndarray
    """float64 [n, 4]; a row of NaN where the dataset gives no box."""
    absent: np.ndarray
    """bool [n]: fully occluded or out of view by the dataset's flags, or no box given."""
    flagged: bool = False
    """Whether the dataset itself flags absence (LaSOT, GOT-10k)."""
    cover: np.ndarray | None = None
    """GOT-10k: visible share of the target in eighths, int [n]."""
    size_px: tuple[int, int] | None = None
    """Width and height of the frames where the annotation states them."""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def init_box(self) -> Box:
        """Where a tracker starts. Raises SequenceError if the first frame has no usable box."""
        if not len(self.boxes) or not has_area(self.boxes[0]):
            found = list(map(float, self.boxes[0])) if len(self.boxes) else "nothing"
            raise SequenceError(
                f"sequence {self.name}: the first frame's box is {found}; a tracker needs four numbers with a width and "
                "height above zero to start from: correct the annotation or leave the sequence out"
            )
        return Box.of(self.boxes[0])

    @property
    def usable(self) -> np.ndarray:
        """bool [n]: present, with a box that has an area."""
        return ~self.absent & has_area(self.boxes)

    @property
    def annotated(self) -> bool:
        """Whether there is more than the starting box: GOT-10k's test split gives nothing else."""
        return bool(np.isfinite(self.boxes[1:]).any())

    def image_size(self) -> tuple[int, int]:
        """Width and height of the frames in pixels, from the annotation or the first frame's header.

        Raises SequenceError if neither is there.
        """
        if self.size_px is not None:
            return self.size_px
        if not self.frames:
            raise SequenceError(f"sequence {self.name}: the size of its frames is not known, for there are no frames")
        try:
            with Image.open(self.frames[0]) as image:
                return image.size
        except OSError as error:
            raise SequenceError(
                f"sequence {self.name}: {self.frames[0]} cannot be read as an image: {error}"
            ) from error


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts 'img2' before 'img10': TrackingNet's frames are numbered without leading zeros."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def list_frames(folder: Path) -> tuple[Path, ...]:
    """The images of one folder in natural order; empty if there is no such folder."""
    if not folder.is_dir():
        return ()
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    return tuple(sorted(found, key=lambda path: natural_key(path.name)))


def make_sequence(
    name: str,
    annotation: Path,
    boxes: np.ndarray,
    frames: tuple[Path, ...] | None,
    *,
    absent: np.ndarray | None = None,
    cover: np.ndarray | None = None,
    size_px: tuple[int, int] | None = None,
) -> Sequence:
    """Check that the parts fit each other. `frames` is None where only the annotation is wanted.

    A single box for many frames is a sequence to track and not to score: the other rows become NaN. Raises
    SequenceError on no boxes, no frames, or different numbers of them.
    """
    if not len(boxes):
        raise SequenceError(f"sequence {name}: {annotation} holds no box")
    if frames is not None:
        if not frames:
            raise SequenceError(f"sequence {name}: no images beside {annotation}")
        boxes = _fit(name, annotation, boxes, len(frames))
    for what, flags in (("absence", absent), ("cover", cover)):
        if flags is not None and len(flags) != len(boxes):
            raise SequenceError(
                f"sequence {name}: {len(flags)} flags of {what} for {len(boxes)} boxes in {annotation}; "
                "take both from the same release of the dataset"
            )
    no_box = ~np.isfinite(boxes).all(-1)
    missing = np.asarray(no_box if absent is None else absent.astype(bool) | no_box)
    return Sequence(name, frames or (), boxes, missing, absent is not None, cover, size_px)


def _fit(name: str, annotation: Path, boxes: np.ndarray, frames: int) -> np.ndarray:
    if len(boxes) == 1 and frames > 1:
        return np.concatenate([boxes, np.full((frames - 1, 4), np.nan)])
    if len(boxes) != frames:
        fault = "shorter than the sequence" if len(boxes) < frames else "longer than the sequence"
        raise SequenceError(
            f"sequence {name}: the annotation is {fault}, {len(boxes)} boxes in {annotation} for {frames} frames; give a "
            "row for each frame (nan,nan,nan,nan where there is no box)"
        )
    return boxes
