"""Folders of images: found once, kept as flat memory-mapped arrays, shared by every worker."""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.data.index import FlatIndex, IndexUnusable
from edgemim.data.tree import find_splits, walk
from edgemim.edge.images import IMAGE_SUFFIXES
from edgemim.errors import UserError

__all__ = ["ImageFolder", "find_splits", "scan_folder"]

_LIST_VERSION = 1
# A directory changed less than this before it was read may change again within the same tick of the file system's
# clock, unseen by its mtime: such a listing is used but not cached. Two seconds is the coarsest clock in use (FAT).
_SETTLED_NS = 2_000_000_000


class ImageFolder:
    """The images below a folder in a fixed order: each directory's sorted files, then its sorted sub-folders.

    `classes` are the first-level folders if every image lies in one and there are at least two, else empty.
    `labels` is int32 [n], -1 where there is no label. `fingerprint` names the list of paths and labels (not the
    pixels). Pickling passes the name of the index file, so workers share one copy.
    """

    def __init__(self, root: Path, index: FlatIndex) -> None:
        self.root = root
        self.classes: tuple[str, ...] = tuple(index.meta["classes"])
        self.labels: np.ndarray = index.arrays["labels"]
        self.fingerprint: str = index.meta["fingerprint"]
        self._index = index
        self._order: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.root)!r}, images={len(self)}, classes={len(self.classes)})"

    def __getstate__(self) -> dict[str, object]:
        # Labels that are the index's own travel with it, by name.
        own = self.labels is self._index.arrays["labels"]
        return {**self.__dict__, "labels": None} if own else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.labels is None:
            self.labels = self._index.arrays["labels"]

    def path(self, i: int) -> Path:
        """Path of image `i`, 0 <= i < len."""
        place = i if self._order is None else int(self._order[i])
        offsets = self._index.arrays["offsets"]
        name = self._index.arrays["paths"][int(offsets[place]) : int(offsets[place + 1])]
        return self.root / os.fsdecode(name.tobytes())

    def label(self, i: int) -> int:
        """Class number of image `i`, -1 if there is none."""
        return int(self.labels[i])

    def select(self, indices: Sequence[int] | np.ndarray) -> ImageFolder:
        """The same folder cut down to the given images, in the given order."""
        chosen = np.asarray(indices, dtype=np.int64)
        folder = ImageFolder(self.root, self._index)
        folder._order = chosen if self._order is None else self._order[chosen]
        folder.classes, folder.labels = self.classes, self.labels[chosen]
        folder.fingerprint = _fingerprint([_bytes(self.fingerprint), chosen], ())
        return folder

    def with_classes(self, classes: Sequence[str]) -> ImageFolder:
        """The same folder with labels numbered as in `classes`, e.g. a validation set as its training set.

        A folder of one class, too, which alone makes none. Raises UserError if the folder has no classes, or one that is
        not among `classes`.
        """
        names = self.classes or self._lone_folder()
        if not names:
            raise UserError(f"{self.root} has no classes: put its images into one folder a class")
        place = {name: number for number, name in enumerate(classes)}
        unknown = [name for name in names if name not in place]
        if unknown:
            raise UserError(
                f"{self.root} holds class {unknown[0]!r}, which is not one of the {len(place)} known classes"
            )
        folder = self.select(np.arange(len(self)))
        folder.classes = tuple(classes)
        folder.labels = np.array([place[name] for name in names], np.int32)[np.maximum(self.labels, 0)]
        folder.fingerprint = _fingerprint([_bytes(self.fingerprint)], folder.classes)
        return folder

    def _lone_folder(self) -> tuple[str, ...]:
        """The first-level folder that all images lie in, if there is but one."""
        found = {self.path(i).relative_to(self.root).parts[:-1][:1] for i in range(len(self))}
        return found.pop() if len(found) == 1 else ()


def scan_folder(root: str | Path, *, cache: bool = True, progress: bool = False) -> ImageFolder:
    """Find all images below `root` (by suffix; symlinked files and folders count, hidden ones do not).

    The list is cached under XDG_CACHE_HOME/edgemim and used again until a directory changes; a damaged or unwritable
    cache costs time, never a failure. Raises UserError if the folder is missing, unreadable or without images.
    """
    root = Path(root).absolute()
    _check_root(root)
    file = _cache_file(root) if cache else None
    index = _open_cached(file, root) if file else None
    if index is None:
        index, settled = _build_index(root, progress)
        if file and settled:
            index = _save(index, file)
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
            settled = settled and time.time_ns() - mtime_ns > _SETTLED_NS
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
        "offsets": np.frombuffer(offsets, np.uint64),
        "labels": np.frombuffer(labels, np.int32) if labelled else np.full(len(labels), -1, np.int32),
        "folders": np.frombuffer(b"\0".join(folder_names), np.uint8),
        "times": np.frombuffer(folder_times, np.int64),
    }
    names = tuple(os.fsdecode(name) for name in classes) if labelled else ()
    fingerprint = _fingerprint([arrays["paths"], arrays["offsets"], arrays["labels"]], names)
    return FlatIndex(arrays, {**_meta(root), "classes": names, "fingerprint": fingerprint}), settled


def _meta(root: Path) -> dict[str, object]:
    return {"version": _LIST_VERSION, "suffixes": sorted(IMAGE_SUFFIXES), "root": os.path.realpath(root)}


def _fingerprint(parts: Sequence[np.ndarray], classes: Sequence[str]) -> str:
    digest = hashlib.blake2b("\0".join(classes).encode("utf-8", "surrogateescape"), digest_size=16)
    for part in parts:
        digest.update(part.view(np.uint8).data)
    return digest.hexdigest()


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _cache_file(root: Path) -> Path | None:
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError:  # no home directory
        return None
    name = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=16).hexdigest()
    return base / "edgemim" / "folders" / f"{name}.index"


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


def _save(index: FlatIndex, file: Path) -> FlatIndex:
    """Put the index on disk and map it from there; in memory it stays if the disk refuses."""
    try:
        index.save(file)
        return FlatIndex.open(file)
    except (OSError, IndexUnusable):
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
