"""Features of images on disk, one row an image: memory-mapped, checked row by row, safe to kill and to share.

A store is a folder of three files: `rows` (float16 [images, tokens, channels]), `checks` (two 64-bit digests a row: of
the image that was shown and of the row's bytes, zero where there is none yet) and `identity.json` (what the rows are
of). A row counts only if its digest agrees, so a write that was cut off, a damaged disk block or another process that
writes the same row can cost time but never give a wrong feature. Several processes may read and fill one store at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.errors import UserError

_ROWS, _CHECKS, _IDENTITY = "rows", "checks", "identity.json"
_CHECK_BYTES = 16
# Of a larger store, rows beyond this are verified when they are first read.
_VERIFIED_ON_OPENING_BYTES = 4 * 2**30


@dataclass
class StoreCounts:
    """What happened to a store in this process."""

    computed: int = 0
    """Rows that were written."""
    damaged: int = 0
    """Rows whose bytes did not match their digest."""
    changed: int = 0
    """Rows of an image that is no longer the one that was shown."""


class FeatureStore:
    """Rows of float16 features by image index.

    Attributes:
        folder: of the three files.
        shape: (images, tokens, channels).
        counts: what happened in this process.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.folder, self.shape = folder, shape
        self.counts = StoreCounts()
        self._rows = np.memmap(folder / _ROWS, np.float16, "r", shape=shape)
        self._checks = np.memmap(folder / _CHECKS, np.uint64, "r", shape=(shape[0], 2))
        # Mapped for reading and written through files: a full disk is an error then, not the death of the process.
        self._files: tuple[int, int] | None = None
        if all(os.access(folder / name, os.W_OK) for name in (_ROWS, _CHECKS)):
            self._files = (os.open(folder / _ROWS, os.O_WRONLY), os.open(folder / _CHECKS, os.O_WRONLY))
        self._whole = np.zeros(shape[0], bool)
        self._same_image = np.zeros(shape[0], bool)

    @classmethod
    def open(cls, root: Path, identity: Mapping[str, Any], shape: tuple[int, int, int]) -> FeatureStore:
        """The store of this identity below `root`, made if it is not there; one that is broken is made anew.

        Raises:
            UserError: if it cannot be written, with the reason.
        """
        folder = root / store_name(identity, shape)
        if _fault(folder, identity, shape) is None:  # whole: no lock is needed, nor a folder that can be written to
            return cls(folder, shape)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root / f"{folder.name}.lock"):
                fault = _fault(folder, identity, shape)
                if fault is not None:
                    if folder.exists():
                        _warn(f"the teacher cache {folder} is unusable ({fault}); it is made anew")
                    _make(folder, identity, shape)
            return cls(folder, shape)
        except OSError as error:
            raise UserError(
                f"cannot write the teacher cache {folder}: {error.strerror or error}; free space or give another folder"
            ) from error

    @property
    def filled(self) -> int:
        """Rows that were written, by whichever process."""
        return int(np.count_nonzero(self._checks[:, 1]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return 2 * self.shape[1] * self.shape[2]

    def missing(self) -> np.ndarray:
        """Indices of the rows that are not there, int64."""
        return np.flatnonzero(self._checks[:, 1] == 0)

    def verify(self, budget_bytes: int = _VERIFIED_ON_OPENING_BYTES) -> int:
        """Check the bytes of the rows that are there, up to a budget; damaged ones are removed. Return their number."""
        before = self.counts.damaged
        for index in np.flatnonzero(self._checks[:, 1])[: max(1, budget_bytes // self.row_bytes)].tolist():
            self._is_whole(index)
        found = self.counts.damaged - before
        if found:
            _warn(f"{found} of {self.shape[0]} rows of the teacher cache {self.folder} are damaged; they are made anew")
        return found

    def read(self, indices: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a batch and which of them are there.

        Args:
            indices: int64 [b], the images' places.
            images: uint8 [b, ...], what is shown; a row made from other pixels does not count.

        Returns:
            float16 [b, tokens, channels], zero where there is no row, and bool [b].
        """
        rows = np.zeros((len(indices), *self.shape[1:]), np.float16)
        found = np.zeros(len(indices), bool)
        for place, index in enumerate(indices.tolist()):
            if self._is_whole(index) and self._is_of(index, images[place]):
                rows[place], found[place] = self._rows[index], True
        return rows, found

    def write(self, index: int, image: np.ndarray, row: np.ndarray) -> None:
        """Keep one row; a disk that is full, or a store that may only be read, keeps what it has."""
        if self._files is None:
            return
        content = np.ascontiguousarray(row, np.float16).tobytes()
        check = np.array([_digest(image.tobytes()), _digest(content)], np.uint64).tobytes()
        try:
            _write(self._files[0], content, index * self.row_bytes)
            _write(self._files[1], check, index * _CHECK_BYTES)
        except OSError as error:
            self._close()
            _warn(f"cannot write the teacher cache {self.folder} ({error.strerror or error}); it is filled no further")
            return
        self.counts.computed += 1
        self._whole[index] = self._same_image[index] = True

    def clear(self) -> None:
        """Forget all rows. Raises UserError if the store cannot be written."""
        if self._files is None:
            raise UserError(f"the teacher cache {self.folder} cannot be written; give another folder")
        # Never cut short: another process has it mapped.
        _write(self._files[1], bytes(self.shape[0] * _CHECK_BYTES), 0)
        self._whole[:] = self._same_image[:] = False

    def _is_whole(self, index: int) -> bool:
        """Whether a row is there, its bytes as they were written; looked at once a process."""
        expected = int(self._checks[index, 1])
        if not expected:
            return False
        if not self._whole[index]:
            if _digest(self._rows[index].tobytes()) != expected:
                self.counts.damaged += 1
                self._remove(index)
                return False
            self._whole[index] = True
        return True

    def _is_of(self, index: int, image: np.ndarray) -> bool:
        if not self._same_image[index]:
            if _digest(image.tobytes()) != int(self._checks[index, 0]):
                self.counts.changed += 1
                return False
            self._same_image[index] = True
        return True

    def _remove(self, index: int) -> None:
        if self._files is not None:
            _write(self._files[1], bytes(_CHECK_BYTES), index * _CHECK_BYTES)

    def _close(self) -> None:
        for file in self._files or ():
            os.close(file)
        self._files = None

    def __del__(self) -> None:
        if getattr(self, "_files", None):
            self._close()


def store_name(identity: Mapping[str, Any], shape: tuple[int, int, int]) -> str:
    """The folder's name: a digest of what the rows are of."""
    text = json.dumps([dict(identity), shape], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def total_bytes(shape: tuple[int, int, int]) -> int:
    """Size of a full store."""
    return shape[0] * (2 * shape[1] * shape[2] + _CHECK_BYTES)


def _fault(folder: Path, identity: Mapping[str, Any], shape: tuple[int, int, int]) -> str | None:
    """Why a store cannot be used, None if it can."""
    wanted = {_ROWS: total_bytes(shape) - shape[0] * _CHECK_BYTES, _CHECKS: shape[0] * _CHECK_BYTES}
    try:
        found = json.loads((folder / _IDENTITY).read_text())
        sizes = {name: (folder / name).stat().st_size for name in wanted}
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"{_IDENTITY} cannot be read: {error}"
    if found != json.loads(json.dumps({"identity": dict(identity), "shape": shape})):
        return f"{_IDENTITY} describes another one"
    wrong = [name for name in wanted if sizes[name] != wanted[name]]
    return f"{wrong[0]} has {sizes[wrong[0]]:,} bytes, not {wanted[wrong[0]]:,}" if wrong else None


def _make(folder: Path, identity: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
    """Put an empty store where none is, or a broken one: beside it first, so that nobody opens half of one."""
    fresh, broken = (folder.with_name(f"{folder.name}.{os.getpid()}.{word}") for word in ("new", "broken"))
    try:
        fresh.mkdir()
        for name, size in ((_ROWS, 2 * shape[0] * shape[1] * shape[2]), (_CHECKS, shape[0] * _CHECK_BYTES)):
            with open(fresh / name, "wb") as file:
                file.truncate(size)  # without blocks yet: it takes room as it is filled
        (fresh / _IDENTITY).write_text(json.dumps({"identity": dict(identity), "shape": shape}, indent=1) + "\n")
        if folder.exists():
            folder.rename(broken)
        fresh.rename(folder)
    finally:
        for leftover in (fresh, broken):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(content: bytes) -> int:
    """64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _write(file: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
