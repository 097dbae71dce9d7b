"""A CSV file of image paths, labels and splits: every row checked before anything is trained."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgemim.data.image_set import ImageFiles, fingerprint_of, number_texts, pack_texts
from edgemim.data.index import FlatIndex
from edgemim.data.tree import SPLIT_NAMES, split_named
from edgemim.errors import UserError

_COLUMNS = ("path", "label", "split")


class ImageTable(ImageFiles):
    """The images that the rows of a CSV file name, in their order; paths are relative to the file's folder."""

    @property
    def base(self) -> Path:
        """The file's folder."""
        return self.root.parent

    def _at(self, i: int) -> str:
        return f"line {self._index.arrays['lines'][self._place(i)]}"


@dataclass
class _Rows:
    """The rows of one split."""

    lines: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def read_table(file: Path) -> dict[str, ImageTable]:
    """The images of each split ("train", "val", "test"; "" where the file has no such column).

    The columns are `path`, `label` and `split`, of which the first alone must be there; a first line with these names
    sets their order.

    Raises:
        UserError: naming the line, if one has too many or too few columns, no label, an unknown split, or names a file
            that is not there.
    """
    file = file.absolute()
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no CSV file in UTF-8 ({error}); write lines of path,label") from error
    columns = _columns(file, rows)
    parts: dict[str, _Rows] = {}
    for line, row in rows:
        if len(row) != len(columns):
            raise UserError(f"{file}, line {line}: {len(row)} columns, not {len(columns)} ({','.join(columns)})")
        cells = dict(zip(columns, map(str.strip, row), strict=True))
        part = parts.setdefault(_split(file, line, cells), _Rows())
        part.lines.append(line)
        part.paths.append(_filled(file, line, cells, "path"))
        if "label" in cells:
            part.labels.append(_filled(file, line, cells, "label"))
    _check_files(file, list(parts.values()))
    return {split: _table(file, part) for split, part in parts.items()}


def _columns(file: Path, rows: list[tuple[int, list[str]]]) -> tuple[str, ...]:
    """The names of the columns; a header is taken out of `rows`."""
    if not rows:
        raise UserError(f"{file} is empty; write lines of path,label")
    line, first = rows[0]
    header = tuple(cell.strip().lower() for cell in first)
    if "path" not in header:
        if len(first) > len(_COLUMNS):
            raise UserError(f"{file}, line {line}: {len(first)} columns; known are {','.join(_COLUMNS)}")
        return _COLUMNS[: len(first)]
    wrong = [name for place, name in enumerate(header) if name not in _COLUMNS or name in header[:place]]
    if wrong:
        raise UserError(f"{file}, line {line}: unknown column {wrong[0]!r}; known are {','.join(_COLUMNS)}, each once")
    if len(rows) == 1:
        raise UserError(f"{file} has a header and no rows; write lines of {','.join(header)}")
    del rows[0]
    return header


def _split(file: Path, line: int, cells: dict[str, str]) -> str:
    if "split" not in cells:
        return ""
    split = split_named(cells["split"])
    if split is None:
        known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
        raise UserError(f"{file}, line {line}: unknown split {cells['split']!r}; known are {known}")
    return split


def _filled(file: Path, line: int, cells: dict[str, str], column: str) -> str:
    if not cells[column]:
        raise UserError(f"{file}, line {line}: no {column}; write it, or remove the line")
    return cells[column]


def _check_files(file: Path, parts: Sequence[_Rows]) -> None:
    """Refuse a row whose file is not there. Each folder is listed once: a million single looks take long on a network."""
    listed: dict[str, set[str]] = {}
    for part in parts:
        for line, path in zip(part.lines, part.paths, strict=True):
            folder, name = os.path.split(os.path.join(file.parent, path))
            if folder not in listed:
                try:
                    listed[folder] = set(os.listdir(folder))
                except OSError:
                    listed[folder] = set()
            if name not in listed[folder]:
                raise UserError(
                    f"{file}, line {line}: no file {path!r} (paths are relative to the CSV file; a header begins with "
                    "'path'); correct the path, or remove the line"
                )


def _table(file: Path, part: _Rows) -> ImageTable:
    if part.labels:
        labels, classes = number_texts(part.labels)
    else:
        labels, classes = np.full(len(part.paths), -1, np.int32), ()
    arrays = {**pack_texts("paths", part.paths), "labels": labels, "lines": np.array(part.lines, np.int32)}
    fingerprint = fingerprint_of([arrays["paths"], arrays["paths_offsets"], labels], classes)
    unlabelled = f"{file} has no labels; write a second column, path,label"
    return ImageTable(
        file, FlatIndex(arrays, {"classes": classes, "fingerprint": fingerprint, "unlabelled": unlabelled})
    )
