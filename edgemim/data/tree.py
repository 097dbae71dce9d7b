"""Directories below a root and the image files in them, in a fixed order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from edgemim.edge.images import IMAGE_SUFFIXES

_SUFFIXES = frozenset(os.fsencode(suffix) for suffix in IMAGE_SUFFIXES)
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class Listing(NamedTuple):
    """One directory's content as sorted names; hidden ones (leading dot) are left out."""

    images: list[bytes]
    others: list[bytes]
    folders: list[bytes]


class Directory(NamedTuple):
    """One directory of a walk; `relative` is its path below the root (empty for the root itself)."""

    relative: bytes
    mtime_ns: int
    listing: Listing


def find_splits(root: str | Path) -> dict[str, Path]:
    """The sub-folders "train" and "val" or "test" (or both) of a set that is split so; {} if it is not."""
    found = {}
    for split, names in SPLIT_NAMES.items():
        paths = [Path(root) / name for name in names if (Path(root) / name).is_dir()]
        if paths:
            found[split] = paths[0]
    return found if "train" in found and len(found) > 1 else {}


def split_named(name: str) -> str | None:
    """ "train", "val" or "test", as which a name is known; None if it is no name of a split."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def split_of_file(name: str) -> str | None:
    """The split that a word of a file's name says: train-00003.tar, validation-00000-of-00002.parquet."""
    words = re.split(r"[-_.]", name)
    return next((split for split in map(split_named, words) if split), None)


def walk(root: Path, on_error: Callable[[Path, OSError], None]) -> Iterator[Directory]:
    """All directories below and with `root`, parents first, sorted; a link back to a parent is not followed."""
    start = os.fsencode(root)
    stack: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
    while stack:
        relative, parents = stack.pop()
        path = os.path.join(start, relative) if relative else start
        try:
            # The time is read before the names: a later change then always shows.
            status = os.stat(path)
            identity = (status.st_dev, status.st_ino)
            if identity in parents:
                continue
            listing = list_directory(path)
        except OSError as error:
            on_error(Path(os.fsdecode(path)), error)
            continue
        yield Directory(relative, status.st_mtime_ns, listing)
        prefix = relative + b"/" if relative else b""
        stack += [(prefix + name, (*parents, identity)) for name in reversed(listing.folders)]


def list_directory(path: bytes) -> Listing:
    """Sort one directory's names into images, other files and folders. Raises OSError."""
    listing = Listing([], [], [])
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            # The suffix decides, without a stat: on a network file system 1.28 million of them take half an hour.
            if os.path.splitext(name)[1].lower() in _SUFFIXES and not entry.is_dir(follow_symlinks=False):
                listing.images.append(name)
            elif entry.is_dir():
                listing.folders.append(name)
            else:
                listing.others.append(name)
    for names in listing:
        names.sort()
    return listing
