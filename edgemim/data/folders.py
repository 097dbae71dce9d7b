"""Folders of images: found once, kept as flat memory-mapped arrays, shared by every worker."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgemim.data.image_set import ImageFiles, fingerprint_of
from edgemim.data.index import SETTLED_NS, FlatIndex, IndexUnusable, cache_file, keep
from edgemim.data.tree import find_splits, walk
from edgemim.edge.images import IMAGE_SUFFIXES
from edgemim.errors import UserError

__all__ = ["ImageFolder", "find_splits", "scan_folder"]

_LIST_VERSION = 2


class ImageFolder(ImageFiles):
    """The images below a folder in a fixed order: each directory's sorted files, then its sorted sub-folders.

    `classes` are the first-level folders if every image lies in one and there are at least two, else empty.
    """

    @property
    def unlabelled(self) -> str:
        """Why the folder has no classes, and the remedy."""
        return f"{self.root} has no classes: put its images into one folder a class, at least two"

    def empty_class(self) -> str | None:
        """A class without images: also a first-level folder without any, where the folders name the classes."""
        found = super().empty_class()
        if found or self._order is not None:
            return found
        folders = self._index.arrays["folders"].tobytes().split(b"\0")
        names = (os.fsdecode(name) for name in folders if name and b"/" not in name)
        empty = next((name for name in names if name not in self.classes), None)
        if empty is None:
            return None
        return (
            f"class folder {self.root / empty} holds no image; add some, remove the folder, "
            "or name the classes by --classes FILE"
        )

    def _class_names(self) -> tuple[str, ...]:
        """The classes, or the first-level folder that all images lie in, if there is but one."""
        if self.classes:
            return self.classes
        found = {self.path(i).relative_to(self.root).parts[:-1][:1] for i in range(len(self))}
        return found.pop() if len(found) == 1 else ()


def scan_folder(root: str | Path, *, cache: bool = True, progress: bool = False) -> ImageFolder:
    """Find all images below `root` (by suffix; symlinked files and folders count, hidden ones do not).

    The list is cached under XDG_CACHE_HOME/edgemim and used again until a directory changes; a damaged or unwritable
    cache costs time, never a failure. Raises UserError if the folder is missing, unreadable or without images.
    """
    root = Path(root).absolute()
    _check_root(root)
    file = cache_file("folders", root) if cache else None
    index = _open_cached(file, root) if file else None
    if index is None:
        index, settled = _build_index(root, progress)
        if file and settled:
            index = keep(index, file)
    return ImageFolder(root, index)


def _check_root(root: Path) -> None:
    if not root.exists():
        raise UserError(f"no folder at {root}; give the folder that holds your images")
    if not root.is_dir():
        raise UserError(f"{root} is a file; give the folder that holds your images")


def _build_index(root: Path, progress: bool) -> tuple[FlatIndex, bool]:
    """Walk the folder; also say whether every directory had come to rest, so that the list may be cached."""

    def refuse(path: Path, error: OSError) -> None:
        raise UserError(f"cannot read folder {path}: {error.strerror or error}; check its permissions") from error

    # Bytes and C arrays, not lists: a million Path objects take 200 bytes each, these about 40 in all.
    paths, offsets, labels = bytearray(), array("Q", [0]), array("i")
    folder_names, folder_times = [], array("q")
    classes: list[bytes] = []
    loose, settled = False, True
    with _Counter(root, progress) as count:
        for relative, mtime_ns, listing in walk(root, refuse):
            settled = settled and time.time_ns() - mtime_ns > SETTLED_NS
            folder_names.append(relative)
            folder_times.append(mtime_ns)
            if not listing.images:
                continue
            first = relative.partition(b"/")[0]
            loose = loose or not first
            if first and (not classes or classes[-1] != first):
                classes.append(first)
            prefix = relative + b"/" if relative else b""
            for name in listing.images:
                paths += prefix
                paths += name
                offsets.append(len(paths))
            labels.extend([len(classes) - 1] * len(listing.images))
            count(len(labels))
    if not labels:
        raise UserError(f"no images in {root}; known suffixes are {' '.join(sorted(IMAGE_SUFFIXES))}")
    labelled = not loose and len(classes) >= 2
    arrays = {
        "paths": np.frombuffer(paths, np.uint8),
        "paths_offsets": np.frombuffer(offsets, np.uint64),
        "labels": np.frombuffer(labels, np.int32) if labelled else np.full(len(labels), -1, np.int32),
        "folders": np.frombuffer(b"\0".join(folder_names), np.uint8),
        "times": np.frombuffer(folder_times, np.int64),
    }
    names = tuple(os.fsdecode(name) for name in classes) if labelled else ()
    fingerprint = fingerprint_of([arrays["paths"], arrays["paths_offsets"], arrays["labels"]], names)
    return FlatIndex(arrays, {**_meta(root), "classes": names, "fingerprint": fingerprint}), settled


def _meta(root: Path) -> dict[str, object]:
    return {"version": _LIST_VERSION, "suffixes": sorted(IMAGE_SUFFIXES), "root": os.path.realpath(root)}


def _open_cached(file: Path, root: Path) -> FlatIndex | None:
    try:
        index = FlatIndex.open(file)
        if any(index.meta.get(key) != value for key, value in _meta(root).items()):
            return None
        names = index.arrays["folders"].tobytes().split(b"\0")
        start = os.fsencode(root)
        for name, mtime_ns in zip(names, index.arrays["times"].tolist(), strict=True):
            if os.stat(os.path.join(start, name)).st_mtime_ns != mtime_ns:
                return None
    except (IndexUnusable, OSError, KeyError, ValueError):
        return None
    return index


class _Counter:
    """Shows how many images were found so far; silent unless asked and on a terminal."""

    def __init__(self, root: Path, shown: bool) -> None:
        self._root, self._shown = root, shown

    def __enter__(self) -> Callable[[int], None]:
        if not self._shown:
            return lambda found: None
        from rich.console import Console
        from rich.markup import escape

        self._status = Console(stderr=True).status(f"listing {escape(repr(str(self._root)))}")
        self._status.start()
        return lambda found: self._status.update(f"listing {escape(repr(str(self._root)))}: {found:,} images")

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._status.stop()
