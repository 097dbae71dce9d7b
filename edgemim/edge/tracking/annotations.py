"""What all readers of tracking annotations share, and the reader of one JSON file for a whole dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgemim.edge.tracking.boxes import parse_boxes
from edgemim.edge.tracking.sequences import Sequence, SequenceError, list_frames, make_sequence, natural_key
from edgemim.errors import UserError


class Layout(Protocol):
    """A dataset's sequences by name; each is read when it is asked for."""

    def names(self) -> list[str]:
        """Names of the sequences, in natural order. Raises UserError."""
        ...

    def read(self, name: str) -> Sequence:
        """One sequence. Raises SequenceError where only this one is at fault."""
        ...


class Annotations:
    """Base of the readers: a root folder, and whether frames are wanted beside the boxes."""

    def __init__(self, root: Path, *, split: str = "", frames: bool = True) -> None:
        self.root, self.split, self.frames = root, split, frames

    def frames_in(self, *folders: Path) -> tuple[Path, ...] | None:
        """Frames of the first folder that has any; None where they are not wanted."""
        if not self.frames:
            return None
        return next((found for folder in folders if (found := list_frames(folder))), ())

    def boxes_in(self, name: str, path: Path, *, polygons: bool = False) -> np.ndarray:
        """Boxes [n, 4] of a text file. Raises SequenceError."""
        try:
            return parse_boxes(path.read_text(), str(path), polygons=polygons)
        except (OSError, UnicodeDecodeError) as error:
            raise SequenceError(f"sequence {name}: {path} cannot be read: {error}") from error
        except UserError as error:
            raise SequenceError(f"sequence {name}: {error}") from error


class JsonFile(Annotations):
    """One JSON file of a whole dataset: name -> boxes, names of frames, and flags.

    Two spellings: `image_files`, `gt_rect` (the GOT-10k-style file of OTB, frames in NAME/img/ beside the file) and pysot's
    `img_names`, `gt_rect`, `absent`, where `absent` 1 means, against its name, that the target is visible.
    """

    def __init__(self, root: Path, *, split: str = "", frames: bool = True) -> None:
        super().__init__(root, split=split, frames=frames)
        try:
            self._content: dict[str, Any] = json.loads(root.read_text())
            if not all("gt_rect" in entry for entry in self._content.values()):
                raise ValueError("an entry has no 'gt_rect'")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{root} is no annotation of sequences: {error}; expected name: {{gt_rect: ...}}"
            ) from error

    def names(self) -> list[str]:
        """The names in the file."""
        return sorted(self._content, key=natural_key)

    def read(self, name: str) -> Sequence:
        """One sequence."""
        entry = self._content[name]
        try:
            boxes = np.array(entry["gt_rect"], np.float64).reshape(len(entry["gt_rect"]), 4)
        except (ValueError, TypeError):
            raise SequenceError(f"sequence {name}: a row of gt_rect in {self.root} is not four numbers") from None
        visible = entry.get("absent")
        absent = None if visible is None else np.array(visible) == 0
        return make_sequence(name, self.root, boxes, self._json_frames(name, entry), absent=absent)

    def _json_frames(self, name: str, entry: Mapping[str, Any]) -> tuple[Path, ...] | None:
        if not self.frames:
            return None
        if "img_names" in entry:
            paths = [self.root.parent / file for file in entry["img_names"]]
        else:
            folder = self.root.parent / entry.get("name", name) / "img"
            paths = [folder / file for file in entry.get("image_files", ())]
        if missing := [path for path in paths if not path.is_file()]:
            raise SequenceError(f"sequence {name}: no frame at {missing[0]}; put {self.root.name} beside the sequences")
        return tuple(paths)


def frame_number(path: Path) -> int:
    """The number in a frame's file name, its last one."""
    found = re.findall(r"\d+", path.stem)
    return int(found[-1]) if found else -1


def read_flags(name: str, path: Path) -> np.ndarray | None:
    """Whole numbers, one a line or all in one line with commas; None if there is no file."""
    if not path.is_file():
        return None
    try:
        return np.array(path.read_text().replace(",", " ").split(), np.float64).astype(int)
    except ValueError:
        raise SequenceError(f"sequence {name}: {path} holds something else than numbers") from None


def either_flag(name: str, first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Frames with one flag or the other; None where one is not given."""
    if first is None or second is None:
        return None
    if len(first) != len(second):
        raise SequenceError(f"sequence {name}: {len(first)} flags of occlusion, {len(second)} of being out of view")
    return (first | second).astype(bool)


def names_of_split(root: Path, split: str, found: Iterable[str], files: Mapping[str, str]) -> list[str]:
    """The found names that a list in the root puts into a split. Raises UserError if there is no list."""
    listed = root / files.get(split, "")
    if split not in files or not listed.is_file():
        wanted = f"put {files[split]} there" if split in files else f"give {' or '.join(files)}"
        raise UserError(f"{root} has no list of the split {split!r}; {wanted}, or name sequences with --sequences")
    wanted_names = set(listed.read_text().split())
    return sorted(wanted_names & set(found), key=natural_key)


def stated_resolution(path: Path) -> tuple[int, int] | None:
    """Width and height in GOT-10k's meta_info.ini, 'resolution: (1920, 1080)'."""
    found = re.search(r"resolution\s*[:=]\s*\(?\s*(\d+)\s*,\s*(\d+)", path.read_text()) if path.is_file() else None
    return (int(found[1]), int(found[2])) if found else None
