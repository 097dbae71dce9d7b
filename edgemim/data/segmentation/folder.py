"""Images with their masks: lists of pairs, a check of all masks before anything is written, pixels counted by class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgemim.data.segmentation.layouts import Layout, LayoutName, Pair, read_layout
from edgemim.data.segmentation.masks import MaskCode
from edgemim.edge.images import load_image
from edgemim.edge.machine import usable_cpus
from edgemim.edge.segmentation import IGNORE
from edgemim.errors import UserError

_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)


class SegmentationFolder:
    """Pairs of image and mask in a fixed order; `fingerprint` names the list of paths (not the pixels)."""

    def __init__(self, root: Path, pairs: Sequence[Pair], classes: tuple[str, ...], code: MaskCode) -> None:
        self.root, self.classes, self.code = root, classes, code
        self.pairs = list(pairs)
        text = "\0".join([*classes, *(os.path.relpath(path, root) for pair in self.pairs for path in pair)])
        self.fingerprint = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.pairs)

    def path(self, i: int) -> Path:
        """Path of image `i`, 0 <= i < len."""
        return self.pairs[i][0]

    def select(self, indices: Sequence[int] | np.ndarray) -> SegmentationFolder:
        """The same folder cut down to the given pairs, in the given order."""
        chosen = [self.pairs[int(index)] for index in indices]
        return SegmentationFolder(self.root, chosen, self.classes, self.code)

    def mask(self, i: int) -> np.ndarray:
        """uint8 [h, w]: class of each pixel of image `i`, 255 where there is none. Raises UserError."""
        return self.code.read(self.pairs[i][1])

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [h, w, 3] and mask uint8 [h, w].

        Raises ImageError if the image cannot be read, UserError if the mask cannot or is of another size.
        """
        image, mask = load_image(self.path(i)), self.mask(i)
        if image.shape[:2] != mask.shape:
            raise UserError(self._unequal(i, image.shape[:2], mask.shape))
        return image, mask

    def count_pixels(self) -> np.ndarray:
        """int64 [classes]: pixels of each class over all masks, each of which is checked on the way.

        Raises UserError on the first mask (in the folder's order) that is damaged, holds a value that is no class, or
        is of another size than its image. Images are not decoded: one that cannot be is left out while training.
        """
        with ThreadPoolExecutor(usable_cpus()) as pool:
            return sum(pool.map(self._count, range(len(self))), np.zeros(len(self.classes), np.int64))

    def _count(self, i: int) -> np.ndarray:
        mask = self.mask(i)
        size = _image_size(self.path(i))
        if size is not None and size != mask.shape:
            raise UserError(self._unequal(i, size, mask.shape))
        return np.bincount(mask.ravel(), minlength=256)[: len(self.classes)]

    def _unequal(self, i: int, image: tuple[int, ...], mask: tuple[int, ...]) -> str:
        return (
            f"mask {self.pairs[i][1]} has {mask[1]}×{mask[0]} pixels, its image {self.path(i)} has {image[1]}×{image[0]}; "
            "masks and images must have the same size"
        )


def _image_size(path: Path) -> tuple[int, int] | None:
    """Height and width as shown, from the header; None if it cannot be read."""
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(_ORIENTATION_TAG) in _TURNED
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except Exception:  # Pillow's readers raise nearly every class on damaged bytes
        return None


@dataclass(frozen=True)
class SegmentationData:
    """Training and held-out pairs with the same classes.

    Attributes:
        train: pairs that are trained on.
        val: pairs that are only measured on.
        held_out: how `val` came about, for the record.
        layout: how the set is laid out.
    """

    train: SegmentationFolder
    val: SegmentationFolder
    held_out: str
    layout: LayoutName

    @staticmethod
    def open(
        data: Path,
        val: Path | None = None,
        *,
        layout: LayoutName | None = None,
        classes: Path | None = None,
        val_share: float = 0.1,
        seed: int = 0,
    ) -> SegmentationData:
        """Open a set with its own split, two sets, or one of which a share is held out, drawn with the seed.

        Raises:
            UserError: if it is not laid out as a segmentation set, or nothing can be held out.
        """
        found = read_layout(data, layout, classes)
        train = _folder(found, "train")
        if val is not None:
            return SegmentationData(train, open_held_out(val, found.classes), f"folder {val}", found.name)
        own = next((split for split in ("val", "test") if split in found.splits), None)
        if own is not None:
            return SegmentationData(train, _folder(found, own), f"the set's own split '{own}'", found.name)
        held = round(val_share * len(train))
        if not 0 < held < len(train):
            raise UserError(f"{val_share:.0%} of {len(train)} images in {data} cannot be held out; give --val DIR")
        order = np.random.default_rng([seed, 0x5E6]).permutation(len(train))
        kept, out = train.select(np.sort(order[held:])), train.select(np.sort(order[:held]))
        return SegmentationData(kept, out, f"{val_share:.0%} of the images, seed {seed}", found.name)


def open_held_out(
    data: Path, labels: tuple[str, ...], layout: LayoutName | None = None, classes: Path | None = None
) -> SegmentationFolder:
    """Pairs to measure on: a set's val or test split, or a folder with images/ and masks/.

    Raises UserError if its classes are not `labels`.
    """
    found = read_layout(data, layout, classes, known=labels)
    if found.classes != labels:
        raise UserError(
            f"the classes of {data} ({', '.join(found.classes[:4])}, ...) are not those of the model "
            f"({', '.join(labels[:4])}, ...); give images with the same classes"
        )
    return _folder(found, next(split for split in ("val", "test", "train") if split in found.splits))


def _folder(layout: Layout, split: str) -> SegmentationFolder:
    return SegmentationFolder(layout.root, layout.splits[split], layout.classes, layout.code)


def check_classes(counts: np.ndarray, labels: tuple[str, ...], root: Path) -> list[str]:
    """Names of the classes without a single training pixel. Raises UserError if fewer than two classes have any."""
    present = [label for label, count in zip(labels, counts, strict=True) if count]
    if len(present) < 2:
        held = f"only the class {present[0]!r}" if present else f"no pixel of any class, all are {IGNORE}"
        raise UserError(f"the masks in {root} hold {held}; there is nothing to tell apart")
    return [label for label, count in zip(labels, counts, strict=True) if not count]
