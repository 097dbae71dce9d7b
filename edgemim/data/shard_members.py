"""What one tar file holds: the place of each image and its label, found by headers alone."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from edgemim.edge.images import IMAGE_SUFFIXES
from edgemim.errors import UserError

_BLOCK = 512
_MAX_LABEL_BYTES = 1 << 20
# WebDataset's rule: the key ends at the first dot of the file's name, the folder belongs to it.
_NAME = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]*)$", re.DOTALL)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


class Member(NamedTuple):
    """An image in a tar file."""

    name: str
    offset: int
    size: int
    label: str | None


def list_members(path: Path) -> list[Member]:
    """The images of a tar file in their order, each with its label where it has one.

    Nothing is unpacked and no name is ever used as a path. What is neither an image nor a label is passed over.

    Raises:
        UserError: if it is no tar file, compressed, cut short or damaged; if an image is a link or stands twice; if a
            label cannot be read.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            for entry in _entries(path, file):
                found = _NAME.match(entry.name)
                if found is None:
                    continue
                key, suffix = found[1], found[2].lower()
                if f".{suffix}" in IMAGE_SUFFIXES:
                    _refuse_odd(path, entry, key in images)
                    images[key] = (entry.name, entry.offset_data, entry.size)
                elif suffix in ("cls", "json") and entry.isreg():
                    text = _label(path, entry, suffix, file)
                    # A class number in its own file comes before what else is known.
                    if text is not None and (suffix == "cls" or key not in labels):
                        labels[key] = text
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return [Member(*place, labels.get(key)) for key, place in images.items()]


def _entries(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """All headers. Python's reader takes a damaged header for the end, so that the end is looked at, too."""
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (closes nothing of ours)
    except OSError:
        raise
    except Exception as error:
        raise UserError(_no_tar(path, error)) from error
    last = ""
    while True:
        try:
            entry = archive.next()
        except OSError:
            raise
        except Exception as error:  # its reader raises nearly every class on damaged headers
            raise UserError(_cut(path, archive.offset, last)) from error
        if entry is None:
            break
        last = entry.name
        archive.members = []  # pyright: ignore[reportAttributeAccessIssue] (a million headers are not kept)
        yield entry
    file.seek(archive.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise UserError(_cut(path, archive.offset, last))


def _no_tar(path: Path, error: Exception) -> str:
    start = path.open("rb").read(2)
    if not start:
        return f"{path} is empty; download or write it again"
    if start in _COMPRESSED:
        return f"{path} is compressed ({_COMPRESSED[start]}), so that no image can be read alone; decompress it first"
    return f"{path} is no tar file ({error}); give files that `edgemim data shard` or tar wrote"


def _cut(path: Path, offset: int, last: str) -> str:
    size = os.path.getsize(path)
    where = f"ends within {last!r}" if offset > size else f"is cut short or damaged after {last!r} (byte {offset:,})"
    return f"{path} {where}; download or write it again"


def _refuse_odd(path: Path, entry: tarfile.TarInfo, twice: bool) -> None:
    if not entry.isreg() or entry.issparse():
        raise UserError(
            f"{path}:{entry.name} is not a plain file in the archive; write it again without links or holes"
        )
    if twice:
        raise UserError(f"{path}:{entry.name}: there is another image of this name before it; rename one")


def _label(path: Path, entry: tarfile.TarInfo, suffix: str, file: IO[bytes]) -> str | None:
    """The label that a member holds; None for JSON without one."""
    if entry.size > _MAX_LABEL_BYTES:
        raise UserError(f"{path}:{entry.name} is no label: it has {entry.size:,} bytes; write a number or a name")
    data = os.pread(file.fileno(), entry.size, entry.offset_data)
    try:
        text = data.decode("utf-8").strip()
        if suffix == "json":
            content = json.loads(text)
            value = content.get("label") if isinstance(content, dict) else None
            if value is None or isinstance(value, bool | list | dict | float):
                return None
            text = str(value).strip()
    except ValueError as error:
        raise UserError(f"{path}:{entry.name} cannot be read as a label ({error}); write a number or a name") from error
    if not text:
        raise UserError(f"{path}:{entry.name} is empty; write a number or a name")
    return text
