"""Training and held-out images with the same classes, as every verb that learns or measures labels opens them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemim.data.class_names import read_class_names
from edgemim.data.image_set import ImageSet
from edgemim.data.sources import find_sources
from edgemim.errors import UserError


@dataclass(frozen=True)
class LabelledData:
    """Training and held-out images with the same classes.

    Attributes:
        train: images that are trained on.
        val: images that are only measured on.
        held_out: how `val` came about, for the record.
    """

    train: ImageSet
    val: ImageSet
    held_out: str

    @staticmethod
    def open(
        data: Path,
        val: Path | None = None,
        *,
        val_share: float = 0.1,
        seed: int = 0,
        classes: Path | Sequence[str] | None = None,
        progress: bool = False,
    ) -> LabelledData:
        """Open a set with splits, two sets, or one of which a share is held out, drawn class by class with the seed.

        Args:
            data: a folder of class folders, a CSV file, tar shards or a Hugging Face dataset on disk.
            val: such a set to measure on.
            val_share: share of each class that is held out where there is neither `val` nor a split.
            seed: seed of that draw.
            classes: names of the classes in their order, or a file of them; default those that the images have.
            progress: whether to show how far a listing is.

        Raises:
            UserError: without at least two classes with images, or if the classes of both parts differ.
        """
        sources = find_sources(data)
        train = sources.train.open(progress=progress)
        if classes is not None:
            file = classes if isinstance(classes, Path) else None
            train = train.with_classes(read_class_names(classes) if isinstance(classes, Path) else classes, file)
        _check_classes(train)
        other = find_sources(val).measured if val is not None else sources.held_out
        if other is not None:
            held = other.open(progress=progress).with_classes(train.classes)
            return LabelledData(train, held, f"{'folder' if other.kind == 'folder' else other.kind} {other.root}")
        kept, held_indices = stratified_split(train.labels, val_share, seed)
        if not len(held_indices):
            raise UserError(f"{val_share:.0%} of {train.root} is no image; give --val DIR or a larger --val-share")
        return LabelledData(
            train.select(kept), train.select(held_indices), f"{val_share:.0%} of each class, seed {seed}"
        )


def open_held_out(data: Path, labels: tuple[str, ...]) -> ImageSet:
    """Images to measure on with the classes of a model: a set's val or test split, or all of it. Raises UserError."""
    return find_sources(data).measured.open().with_classes(labels)


def _check_classes(images: ImageSet) -> None:
    if not images.classes:
        raise UserError(images.unlabelled)
    if len(images.classes) == 1:
        raise UserError(
            f"all images in {images.root} are of one class, {images.classes[0]!r}; at least two are needed to tell apart"
        )
    empty = images.empty_class()
    if empty is not None:
        raise UserError(empty)


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out), sorted: of each class round(share * count) held out, at least one stays."""
    generator = np.random.default_rng([seed, 0x5EED])
    kept, held = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(round(share * len(members)), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def spread_over_classes(labels: np.ndarray, limit: int) -> np.ndarray:
    """Up to `limit` indices, sorted, taken from all classes in turn, each class in its own order."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, rank))[:limit])
