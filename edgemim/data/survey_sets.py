"""What a CSV file, tar shards or a Hugging Face dataset hold, for the same summary as a folder's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.data.image_set import ImageSet
from edgemim.data.inspection import FileFacts, FileLimits, inspect_files, inspect_set
from edgemim.data.sources import find_sources
from edgemim.data.survey import Contents, list_contents


@dataclass
class SetContents(Contents):
    """The images of each split; names are relative to the folder."""

    sets: dict[str, ImageSet] = field(default_factory=dict)

    def place(self, name: str) -> tuple[str, str]:
        """(split, class) of an image, '' where there is none."""
        return self._places[name]

    def balance(self) -> dict[str, dict[str, Any]]:
        """Images a class for each split; `note` says why a split has no classes."""
        return {split: _balance(images) for split, images in self.sets.items()}

    @cached_property
    def _places(self) -> dict[str, tuple[str, str]]:
        places = (
            (split, images.classes[images.label(i)] if images.classes else "")
            for split, images in self.sets.items()
            for i in range(len(images))
        )
        return dict(zip(self.images, places, strict=True))


def survey_contents(data: Path) -> Contents:
    """What there is to check: a folder's files, or the images that anything else names.

    Raises UserError if there is nothing, or if it cannot be read.
    """
    if not data.exists():
        return list_contents(data)
    sources = find_sources(data)
    if data.is_dir() and all(source.kind == "folder" for source in sources.splits.values()):
        return list_contents(data)
    sets = {split: source.open() for split, source in sources.splits.items()}
    names = [_relative(images.name(i), data) for images in sets.values() for i in range(len(images))]
    return SetContents(data, images=names, sets=sets)


def inspect_contents(contents: Contents, limits: FileLimits, workers: int) -> Iterator[FileFacts]:
    """The facts of each image, in the order of `contents.images`."""
    if isinstance(contents, SetContents):
        return chain.from_iterable(inspect_set(images, limits, workers) for images in contents.sets.values())
    return inspect_files(contents.root, contents.images, limits, workers)


def _relative(name: str, data: Path) -> str:
    for folder in (data.absolute(), data.absolute().parent):
        if name.startswith(f"{folder}/"):
            return name.removeprefix(f"{folder}/")
    return name


def _balance(images: ImageSet) -> dict[str, Any]:
    if not images.classes:
        return {"images": len(images), "classes": {}, "empty": [], "imbalance": None, "note": images.unlabelled}
    counts = np.bincount(images.labels, minlength=len(images.classes)).tolist()
    filled = {name: count for name, count in zip(images.classes, counts, strict=True) if count}
    return {
        "images": len(images),
        "classes": filled,
        "empty": [name for name in images.classes if name not in filled],
        "imbalance": round(max(filled.values()) / min(filled.values()), 2),
    }
