"""Flat arrays in one file on disk: written atomically, verified when opened, memory-mapped by every process."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# What changed less than this before it was listed may change again within the same tick of the file system's clock,
# unseen by its mtime: such a listing is used but not cached. Two seconds is the coarsest clock in use (FAT).
SETTLED_NS = 2_000_000_000

_MAGIC = b"EDGEMIM1"
_PREFIX = struct.Struct("<8sQ")
_ALIGN = 64


class IndexUnusable(Exception):
    """The index file is missing, cut short, altered or of another version: build it again."""


class FlatIndex:
    """Named one-dimensional arrays and a small JSON-able `meta`.

    Opened from a file, the arrays are read-only memory maps: processes share one copy in the page cache, and pickling
    passes the file's name and digest, not the arrays.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        self.arrays = dict(arrays)
        self.meta = dict(meta)
        self.file: Path | None = None
        self.digest = ""

    def save(self, file: Path) -> None:
        """Write beside `file`, then rename over it. Raises OSError (full disk, no permission) and leaves no half file."""
        entries, position = {}, 0
        for name, array in self.arrays.items():
            entries[name] = [array.dtype.str, len(array), position]
            position = _aligned(position + array.nbytes)
        digest = self._digest(entries)
        header = json.dumps({"meta": self.meta, "arrays": entries, "digest": digest}).encode()
        header += b" " * (_aligned(_PREFIX.size + len(header)) - _PREFIX.size - len(header))
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as stream:
                stream.write(_PREFIX.pack(_MAGIC, len(header)) + header)
                for array in self.arrays.values():
                    stream.write(array.view(np.uint8).data)
                    stream.write(b"\0" * (-array.nbytes % _ALIGN))
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def open(cls, file: Path, expected_digest: str = "") -> FlatIndex:
        """Map a file. The content is verified, unless the caller knows its digest from a process that has verified it.

        Raises IndexUnusable if the file is missing, damaged, of another version or not the expected one.
        """
        try:
            data = np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
            header, start = _read_header(data)
            arrays = {name: _view(data, start, *entry) for name, entry in header["arrays"].items()}
            index = cls(arrays, header["meta"])
            index.file, index.digest = file, header["digest"]
            known = expected_digest or index._digest(header["arrays"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise IndexUnusable(f"{file}: {error}") from error
        if known != index.digest:
            raise IndexUnusable(f"{file}: content does not match its digest")
        return index

    def _digest(self, entries: Mapping[str, Any]) -> str:
        digest = hashlib.blake2b(json.dumps([self.meta, entries], sort_keys=True).encode(), digest_size=16)
        for array in self.arrays.values():
            digest.update(array.view(np.uint8).data)
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is None:
            return FlatIndex, (self.arrays, self.meta)
        return FlatIndex.open, (self.file, self.digest)


def _read_header(data: np.ndarray) -> tuple[dict[str, Any], int]:
    magic, length = _PREFIX.unpack(data[: _PREFIX.size].tobytes())
    if magic != _MAGIC or length > len(data):
        raise ValueError("not an index file of this version")
    start = _PREFIX.size + length
    return json.loads(data[_PREFIX.size : start].tobytes()), start


def _view(data: np.ndarray, start: int, dtype: str, length: int, position: int) -> np.ndarray:
    begin = start + position
    end = begin + np.dtype(dtype).itemsize * length
    if length < 0 or position < 0 or end > len(data):
        raise ValueError("cut short")
    return data[begin:end].view(dtype)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def cache_file(kind: str, path: Path) -> Path | None:
    """Where the index of a folder or file is cached, below XDG_CACHE_HOME/edgemim; None without a home directory."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError:
        return None
    name = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=16).hexdigest()
    return base / "edgemim" / kind / f"{name}.index"


def keep(index: FlatIndex, file: Path) -> FlatIndex:
    """Put the index on disk and map it from there; in memory it stays if the disk refuses."""
    try:
        index.save(file)
        return FlatIndex.open(file)
    except (OSError, IndexUnusable):
        return index
