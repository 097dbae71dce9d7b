"""Images in tar files (WebDataset's layout), read where they lie: nothing is unpacked, any image is one read away."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.data.image_set import ImageSet, fingerprint_of, is_number, number_texts, pack_texts
from edgemim.data.index import SETTLED_NS, FlatIndex, IndexUnusable, cache_file, keep
from edgemim.data.shard_members import Member, list_members
from edgemim.edge.images import IMAGE_SUFFIXES, ImageError
from edgemim.errors import UserError

_LIST_VERSION = 1
# Far below the usual limit of 1,024 open files a process.
_MAX_OPEN = 200


class TarShards(ImageSet):
    """The images of tar files in the order in which they lie: `KEY.jpg`, with a label in `KEY.cls` or `KEY.json`.

    The index says in which file, at which offset and how long each is.
    """

    def __init__(self, root: Path, index: FlatIndex) -> None:
        super().__init__(root, index)
        self._open = _OpenFiles()

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_open": _OpenFiles()}  # open files stay in their process

    def name(self, i: int) -> str:
        return f"{self._facts(i)[0]}:{self._text('names', i)}"

    def read(self, i: int) -> bytes:
        place, arrays = self._place(i), self._index.arrays
        size = int(arrays["sizes"][place])
        data = os.pread(self._open.get(*self._facts(i)), size, int(arrays["offsets"][place]))
        if len(data) != size:
            raise ImageError(self.name(i), f"{len(data)} of {size} bytes are there; the tar file is cut short")
        return data

    def _facts(self, i: int) -> tuple[str, int, int]:
        """Path, size and time of change of the tar file that image `i` lies in."""
        return self._index.meta["files"][int(self._index.arrays["shards"][self._place(i)])]


class _OpenFiles:
    """Files that are read by offset, which leaves them as they are: forked readers may share them."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def get(self, path: str, size: int, changed_ns: int) -> int:
        """The open file. Raises OSError, or UserError if it is not as it was when it was listed."""
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
            return self._descriptors[path]
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (size, changed_ns):
            os.close(descriptor)
            raise UserError(f"{path} has changed since it was listed; start again")
        self._descriptors[path] = descriptor
        if len(self._descriptors) > _MAX_OPEN:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def open_shards(root: Path, files: Sequence[Path], *, cache: bool = True, progress: bool = False) -> TarShards:
    """List the images of tar files, or take the list that was cached and still holds.

    Args:
        root: what the user named, for messages.
        files: the tar files, in their order.
        cache: whether a list may be kept, below XDG_CACHE_HOME/edgemim.
        progress: whether to show how far it is, on a terminal.

    Raises:
        UserError: if a file is no tar file, compressed, cut short or damaged, or if there is no image in any.
    """
    files = [path.absolute() for path in files]
    wanted = _meta(files)
    kept = cache_file("shards", files[0].parent / "\n".join(path.name for path in files)) if cache else None
    index = _open_cached(kept, wanted) if kept else None
    if index is None:
        index = _build(root, files, wanted, progress)
        settled = all(time.time_ns() - changed > SETTLED_NS for _, _, changed in wanted["files"])
        if kept and settled:
            index = keep(index, kept)
    return TarShards(root, index)


def _meta(files: Sequence[Path]) -> dict[str, Any]:
    facts = []
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        facts.append([str(path), status.st_size, status.st_mtime_ns])
    return {"version": _LIST_VERSION, "suffixes": sorted(IMAGE_SUFFIXES), "files": facts}


def _open_cached(file: Path, wanted: dict[str, Any]) -> FlatIndex | None:
    try:
        index = FlatIndex.open(file)
    except IndexUnusable:
        return None
    return index if all(index.meta.get(key) == value for key, value in wanted.items()) else None


def _build(root: Path, files: Sequence[Path], meta: dict[str, Any], progress: bool) -> FlatIndex:
    shards: list[int] = []
    members: list[Member] = []
    for number, path in enumerate(_shown(files, progress)):
        found = list_members(path)
        members += found
        shards += [number] * len(found)
    if not members:
        raise UserError(
            f"no images in {root}: tar files hold KEY.jpg (or {', '.join(sorted(IMAGE_SUFFIXES - {'.jpg'}))}), KEY without a dot"
        )
    bare = next((place for place, member in enumerate(members) if member.label is None), None)
    texts = [member.label or "" for member in members]
    labels, classes = number_texts(texts) if bare is None else (np.full(len(members), -1, np.int32), ())
    unlabelled = ""
    if bare is not None:
        unlabelled = (
            f"{files[shards[bare]]}:{members[bare].name} has no label; give each image KEY.jpg a KEY.cls (number or name) "
            'or a KEY.json with {"label": ...}'
        )
    arrays = {
        **pack_texts("names", [member.name for member in members]),
        "labels": labels,
        "shards": np.array(shards, np.int32),
        "offsets": np.array([member.offset for member in members], np.int64),
        "sizes": np.array([member.size for member in members], np.int64),
    }
    # Not the folder's name: the set may move.
    names = [path.name for path in files]
    fingerprint = fingerprint_of(list(arrays.values()), [*classes, *names])
    numbered = all(map(is_number, classes))
    facts = {"classes": classes, "fingerprint": fingerprint, "unlabelled": unlabelled, "numbered": numbered}
    return FlatIndex(arrays, {**meta, **facts})


def _shown(files: Sequence[Path], progress: bool) -> Any:
    """The files, with a bar where there is a terminal and more than one of them."""
    if not progress or len(files) < 2:
        return files
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(files, "listing shards", console=console, transient=True, disable=not console.is_terminal)
