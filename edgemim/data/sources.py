"""The one opener of images: a folder, a CSV file, tar shards or a Hugging Face dataset, with the splits that it has."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from edgemim.data.arrow import SLOW_GROUP_BYTES, open_arrow, slowest_group_bytes
from edgemim.data.class_names import read_class_names
from edgemim.data.folders import scan_folder
from edgemim.data.image_set import ImageSet
from edgemim.data.shards import open_shards
from edgemim.data.table import ImageTable, read_table
from edgemim.data.tree import SPLIT_NAMES, find_splits, split_named, split_of_file
from edgemim.edge.images import IMAGE_SUFFIXES
from edgemim.errors import UserError

Kind = Literal["folder", "csv", "tar", "arrow"]
_SUFFIXES = (".csv", ".tar", ".parquet", ".arrow")
CLASSES_FILE = "classes.json"
"""Names of the classes beside tar shards whose labels are numbers."""


@dataclass(frozen=True)
class Source:
    """Where the images of one split lie; nothing but names was looked at yet.

    Attributes:
        kind: how they are kept.
        root: the folder or file that a message names.
        files: the tar, Arrow or parquet files.
        table: the rows of a CSV file.
    """

    kind: Kind
    root: Path
    files: tuple[Path, ...] = ()
    table: ImageTable | None = None

    def open(self, *, progress: bool = False) -> ImageSet:
        """The images. Raises UserError naming what is wrong with them, MissingLibrary without pyarrow."""
        if self.table is not None:
            return self.table
        if self.kind == "folder":
            return scan_folder(self.root, progress=progress)
        if self.kind == "arrow":
            return self._open_arrow()
        shards = open_shards(self.root, self.files, progress=progress)
        named = self.files[0].parent / CLASSES_FILE
        return shards.with_classes(read_class_names(named), named) if shards.classes and named.is_file() else shards

    def _open_arrow(self) -> ImageSet:
        images = open_arrow(self.root, self.files)
        slowest = slowest_group_bytes(self.files)
        if slowest > SLOW_GROUP_BYTES:
            print(
                f"warning: a row group of {self.root} holds {slowest >> 20} MiB, decoded for each image that is read; "
                "`edgemim data shard` makes shards that are read image by image",
                file=sys.stderr,
            )
        return images


@dataclass(frozen=True)
class Sources:
    """The splits of one --data: "train", "val", "test", or "" for all where it is not split."""

    data: Path
    splits: dict[str, Source]

    @property
    def train(self) -> Source:
        """What is trained on: the split of that name, or all."""
        return self.splits.get("train") or self._all_but("train")

    @cached_property
    def held_out(self) -> Source | None:
        """The split to measure on, val before test; None if there is none."""
        return self.splits.get("val") or self.splits.get("test")

    @property
    def measured(self) -> Source:
        """What is measured on where that is all that is asked: val, test, or all."""
        return self.held_out or self._all_but("val")

    def _all_but(self, missing: str) -> Source:
        if "" in self.splits:
            return self.splits[""]
        if len(self.splits) == 1:
            return next(iter(self.splits.values()))
        raise UserError(f"{self.data} has no split '{missing}', only {', '.join(self.splits)}; name one of them")


def find_sources(data: Path) -> Sources:
    """Recognise what the user named: by its suffix if it is a file, by what lies in it if it is a folder.

    Raises:
        UserError: if there is nothing, or a file of another kind; a CSV file is read and checked at once.
    """
    if data.is_file():
        return Sources(data, _of_file(data))
    if not data.exists():
        kind = "file" if data.suffix.lower() in _SUFFIXES else "folder"
        raise UserError(
            f"no {kind} at {data}; give the folder that holds your images, or a file ({', '.join(_SUFFIXES)})"
        )
    return Sources(data, _of_folder(data))


def _of_file(path: Path) -> dict[str, Source]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return {split: Source("csv", path, table=table) for split, table in read_table(path).items()}
    if suffix == ".tar":
        return {"": Source("tar", path, (path,))}
    if suffix in _SUFFIXES:
        return {"": Source("arrow", path, (path,))}
    raise UserError(
        f"{path} is a file, but not {', '.join(_SUFFIXES)}; give one of these, or the folder of your images"
    )


def _of_folder(folder: Path) -> dict[str, Source]:
    listed = folder / "dataset_dict.json"
    if listed.is_file():
        return {_split(name, folder): _saved(folder / name) for name in _json_list(listed, "splits")}
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {"": _saved(folder)}
    splits = find_splits(folder)
    if splits:
        return {split: _part(path) for split, path in splits.items()}
    packed = _files_alone(folder)
    if packed is None and (folder / "data").is_dir() and _files_alone(folder, beside="data") is not None:
        packed = _files_alone(folder / "data")  # as datasets lie on the Hub
    kinds: tuple[tuple[Kind, str], ...] = (("tar", ".tar"), ("arrow", ".parquet"))
    for kind, suffix in kinds:
        files = [path for path in packed or () if path.suffix.lower() == suffix]
        if files:
            return _by_name(kind, folder, files)
    return {"": Source("folder", folder)}


def _part(folder: Path) -> Source:
    """One split of a folder; it may have no splits of its own."""
    found = _of_folder(folder)
    return found[""] if list(found) == [""] else Source("folder", folder)


def _split(name: str, folder: Path) -> str:
    split = split_named(name)
    if split is None:
        known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
        raise UserError(
            f"{folder} has a split {name!r}; known are {known}: give the folder of one split, {folder / name}"
        )
    return split


def _saved(folder: Path) -> Source:
    """A folder that `save_to_disk` wrote."""
    state = folder / "state.json"
    files = tuple(folder / entry for entry in _json_list(state, "_data_files"))
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None or not files:
        raise UserError(f"{state} names {missing or 'no file'}, which is not there; save the dataset again")
    return Source("arrow", folder, files)


def _json_list(file: Path, key: str) -> list[str]:
    """File names under a key, each without a folder: no other folder is read."""
    try:
        content = json.loads(file.read_text())
        if content.get("_indices_files") or content.get("_indices_data_files"):
            raise UserError(
                f"{file}: the rows are chosen by another file; save the dataset again with flatten_indices()"
            )
        names = [entry["filename"] if isinstance(entry, dict) else str(entry) for entry in content[key]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error}); save the dataset again with save_to_disk") from error
    if any(os.path.basename(name) != name or not name for name in names):
        raise UserError(f"{file} names files of other folders; save the dataset again with save_to_disk")
    return names


def _files_alone(folder: Path, beside: str = "") -> list[Path] | None:
    """Sorted files of a folder that holds neither images nor folders (but the one named); else None."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                image = os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
                if image or (entry.is_dir() and entry.name != beside):
                    return None
                found.append(folder / entry.name)
    except OSError:  # the one that reads the folder says it better
        return None
    return sorted(found)


def _by_name(kind: Kind, folder: Path, files: Iterable[Path]) -> dict[str, Source]:
    """Files by the split that their names say (train-00000.tar), if each of them says one."""
    parts: dict[str | None, list[Path]] = {}
    for path in files:
        parts.setdefault(split_of_file(path.name), []).append(path)
    if None in parts or len(parts) == 1:
        parts = {"": [path for part in parts.values() for path in part]}
    return {split or "": Source(kind, folder, tuple(part)) for split, part in parts.items()}
