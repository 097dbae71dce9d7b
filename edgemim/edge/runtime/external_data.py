"""Which files an ONNX model would read besides itself, found without the onnx package, and whether it may.

The walk follows onnx.proto (github.com/onnx/onnx): only lengths of fields are read, so weights are skipped, not parsed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgemim.edge.artifact import Artifact, ModelFile
from edgemim.errors import ModelRefused, UserError

# For each message the fields that can lead to a tensor: field number -> message.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2
_MAX_DEPTH = 100  # as protobuf's own parsers


def check_external_data(artifact: Artifact, entry: ModelFile) -> None:
    """Raise UserError if the ONNX file reads a file that the manifest does not list (and so did not verify)."""
    path = artifact.folder / entry.path
    for location in sorted(external_files(path)):
        # Companions are checked paths inside the folder; anything else, '../', absolute or odd, is not among them.
        if str(PurePosixPath(entry.path).parent / location) not in entry.companions:
            raise UserError(f"{path} reads another file, {location!r}, that its manifest does not list; refused")


def external_files(path: Path) -> set[str]:
    """The locations of external data in an ONNX file, as written there. Raises ModelRefused if it is no ONNX file."""
    try:
        with open(path, "rb") as file:
            # Not closed by hand: the slices in an error's traceback still point into it.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return set(_locations(memoryview(content), "model", 0))
    except (IndexError, ValueError) as error:
        raise ModelRefused(f"{path} is not a readable ONNX file ({error}); export it again") from error


def _locations(view: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if message == "entry":
        fields = {number: bytes(value).decode("utf-8", "replace") for number, value in _fields(view)}
        if fields.get(_KEY) == "location":
            yield fields.get(_VALUE, "")
        return
    for number, value in _fields(view):
        if number in _MESSAGES[message]:
            yield from _locations(value, _MESSAGES[message][number], depth + 1)


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message (number, content); others are skipped."""
    position = 0
    while position < len(view):
        tag, position = _varint(view, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(view, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _varint(view, position)
            if length > len(view) - position:
                raise ValueError("a field is longer than the file")
            yield tag >> 3, view[position : position + length]
            position += length
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")
