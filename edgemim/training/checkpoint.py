"""The checkpoint directory: written beside, synced, renamed; verified when read, with one before it to fall back on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from edgemim.errors import EdgemimError

_NAME = re.compile(r"step-(\d{9})")
_LINE = re.compile(r"([0-9a-f]{64})  (\w+\.(?:safetensors|json))", re.ASCII)
_SUMS = "SHA256SUMS"
_STATE = "state.json"
_REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space within your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}


class CheckpointError(EdgemimError):
    """A checkpoint could not be written; what stood there before still stands."""

    exit_code = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a training run needs to go on: named tensors by file, and the small facts of `state.json`."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointFolder:
    """`FOLDER/step-NNNNNNNNN/` directories of safetensors files, `state.json` and `SHA256SUMS`; no pickle anywhere."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = max(keep, 2)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint so that a crash at any instant leaves the ones before it whole.

        Raises:
            CheckpointError: naming path and bytes when the disk is full or refuses; no half file stays behind.
        """
        final = self.folder / f"step-{checkpoint.step:09d}"
        temporary = final.with_name(final.name + ".tmp")
        files = {f"{name}.safetensors": save(_plain(tensors)) for name, tensors in checkpoint.tensors.items()}
        files[_STATE] = json.dumps({**checkpoint.state, "step": checkpoint.step}, indent=2).encode()
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
        files[_SUMS] = sums.encode()
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name, content in files.items():
                _write_synced(temporary / name, content)
            _sync_folder(temporary)
            self._publish(temporary, final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            size = sum(map(len, files.values()))
            remedy = _REMEDIES.get(error.errno or 0, "make the folder writable")
            raise CheckpointError(
                f"cannot write checkpoint {final} ({size:,} bytes): {error.strerror}; {remedy} and --resume"
            ) from error
        self._prune()
        return final

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint whose sums agree, or None; each damaged one is named on standard error and set aside.

        Raises:
            CheckpointError: if there are checkpoints, but none is whole; then all are left where they are.
        """
        self.clean()
        damaged: dict[Path, str] = {}
        for path in self._paths():
            try:
                checkpoint = read_checkpoint(path)
            except ValueError as error:
                damaged[path] = str(error)
                print(f"warning: {error}; falling back to the checkpoint before it", file=sys.stderr)
                continue
            # Left in its place it would count among those that are kept, and push out the whole ones.
            for other in damaged:
                _set_aside(other)
            return checkpoint
        if damaged:
            reasons = "; ".join(damaged.values())
            raise CheckpointError(
                f"no whole checkpoint is left in {self.folder}: {reasons}; start anew with --overwrite"
            )
        return None

    def clean(self) -> None:
        """Remove what a crash left half written."""
        for path in self.folder.glob("step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("step-*.old"):
            shutil.rmtree(path, ignore_errors=True)

    def _publish(self, temporary: Path, final: Path) -> None:
        if final.exists():  # a damaged or repeated checkpoint of the same step
            old = final.with_name(final.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        temporary.rename(final)
        _sync_folder(self.folder)
        shutil.rmtree(final.with_name(final.name + ".old"), ignore_errors=True)
        # For people and scripts; loading looks at the directories themselves.
        pointer = self.folder / "latest.tmp"
        _write_synced(pointer, (final.name + "\n").encode())
        pointer.replace(self.folder / "latest")

    def _paths(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, reverse=True)

    def _prune(self) -> None:
        for path in self._paths()[self.keep :]:
            shutil.rmtree(path, ignore_errors=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint directory. Raises ValueError that names the file at fault."""
    contents = dict(_verified_files(path))
    if _STATE not in contents:
        raise ValueError(f"{path / _STATE} is not listed in {_SUMS}")
    state = json.loads(contents.pop(_STATE))
    tensors = {name.removesuffix(".safetensors"): load(content) for name, content in contents.items()}
    return Checkpoint(int(state.pop("step")), tensors, state)


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint; not deleted, because a disk that cannot be read now may be read later."""
    target = path.with_name(path.name + ".damaged")
    try:
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
    except OSError:
        return  # it stays, and is found damaged again


def _verified_files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        lines = (path / _SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / _SUMS} cannot be read") from error
    if not lines:
        raise ValueError(f"{path / _SUMS} is empty")
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{path / _SUMS} is damaged")
        expected, name = found.groups()
        try:
            content = (path / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{path / name} of its {_SUMS} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"{path / name} (or its line in {_SUMS}) is damaged: the SHA-256 is another")
        yield name, content


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # clone: tied or viewed storage is refused by safetensors, and a copy cannot change while it is written.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
