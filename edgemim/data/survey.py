"""What a folder of images holds: sizes, formats, findings by name, duplicates, class balance. Only reads."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgemim.data.inspection import FileFacts
from edgemim.data.tree import find_splits, walk
from edgemim.errors import UserError


@dataclass
class Contents:
    """The names below a folder; paths are relative to it."""

    root: Path
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    unreadable_folders: list[tuple[str, str]] = field(default_factory=list)

    def place(self, name: str) -> tuple[str, str]:
        """(split, class) of an image by its folders, '' where there is none."""
        parts = name.split("/")
        split = parts.pop(0) if parts[0] in self._splits else ""
        return split, parts[0] if len(parts) > 1 else ""

    def balance(self) -> dict[str, dict[str, Any]]:
        """Images a class for each split, see `class_balance`."""
        return class_balance(self)

    @cached_property
    def _splits(self) -> set[str]:
        return {path.name for path in find_splits(self.root).values()}


def list_contents(root: Path) -> Contents:
    """Walk the folder once. Raises UserError if it is missing, a file, or holds no image."""
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {kind}; give the folder that holds your images")
    contents = Contents(root)

    def note(path: Path, error: OSError) -> None:
        contents.unreadable_folders.append((os.path.relpath(path, root), error.strerror or str(error)))

    for relative, _, listing in walk(root, note):
        prefix = os.fsdecode(relative + b"/") if relative else ""
        contents.images += [prefix + os.fsdecode(name) for name in listing.images]
        contents.others += [prefix + os.fsdecode(name) for name in listing.others]
        contents.folders += [prefix + os.fsdecode(name) for name in listing.folders]
    if not contents.images:
        raise UserError(f"no images in {root}; give the folder that holds your images")
    return contents


class Findings:
    """Collects facts file by file; `summary` and `details` are made of plain JSON types."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._widths, self._heights, self._bytes = array("q"), array("q"), array("q")
        self._formats: Counter[str] = Counter()
        self._modes: Counter[str] = Counter()
        self._odd_kinds: Counter[str] = Counter()
        self._unreadable: list[dict[str, str]] = []
        self._odd: list[dict[str, Any]] = []
        self._digests: list[bytes] = []

    def add(self, name: str, facts: FileFacts) -> None:
        """Note one file; call in the order of `contents.images`."""
        self._bytes.append(facts.bytes)
        # Unreadable files keep a place without a digest: two empty files are no copies of a picture.
        self._digests.append(b"" if facts.error else facts.digest)
        if facts.error:
            self._unreadable.append({"path": name, "reason": facts.error})
            return
        self._widths.append(facts.width)
        self._heights.append(facts.height)
        self._formats[facts.format] += 1
        self._modes[facts.mode] += 1
        if facts.odd:
            self._odd.append({"path": name, "kinds": list(facts.odd)})
            self._odd_kinds.update(kind.partition(":")[0] for kind in facts.odd)

    def summary(self) -> dict[str, Any]:
        """Counts and distributions."""
        return {
            "images": len(self._digests),
            "readable": len(self._widths),
            "unreadable": len(self._unreadable),
            "odd": dict(self._odd_kinds.most_common()),
            "other_files": len(self.contents.others),
            "unreadable_folders": len(self.contents.unreadable_folders),
            "width_px": _spread(self._widths),
            "height_px": _spread(self._heights),
            "file_bytes": _spread(self._bytes),
            "total_bytes": int(sum(self._bytes)),
            "formats": dict(self._formats.most_common()),
            "modes": dict(self._modes.most_common()),
            "duplicate_groups": len(self.duplicates),
            "duplicate_files": sum(len(group) - 1 for group in self.duplicates),
            "groups_across_splits": len(self._across("split")),
            "groups_across_classes": len(self._across("class")),
            "splits": self.contents.balance(),
        }

    def details(self) -> dict[str, Any]:
        """Every finding by name."""
        return {
            "unreadable": self._unreadable,
            "odd": self._odd,
            "other_files": self.contents.others,
            "unreadable_folders": [{"path": path, "reason": why} for path, why in self.contents.unreadable_folders],
            "duplicates": self.duplicates,
            "duplicates_across_splits": self._across("split"),
            "duplicates_across_classes": self._across("class"),
        }

    @cached_property
    def duplicates(self) -> list[list[str]]:
        """Groups of files with the same content, in the order of their first one. Ask after the last `add`."""
        copies = Counter(self._digests)
        groups: dict[bytes, list[str]] = {}
        for name, digest in zip(self.contents.images, self._digests, strict=True):
            if digest and copies[digest] > 1:
                groups.setdefault(digest, []).append(name)
        return list(groups.values())

    def _across(self, part: Literal["split", "class"]) -> list[list[str]]:
        """Groups of duplicates that lie in more than one split or class."""
        position = 0 if part == "split" else 1
        return [group for group in self.duplicates if len({self.contents.place(name)[position] for name in group}) > 1]


def class_balance(contents: Contents) -> dict[str, dict[str, Any]]:
    """Images a class for each split, by the rule of `scan_folder`; '' stands for what lies in no split.

    `empty` are first-level folders without an image; `imbalance` is the largest class over the smallest.
    """
    splits = [path.name for path in find_splits(contents.root).values()]
    balance = {split: _balance_below(contents, f"{split}/") for split in splits}
    inside = sum(entry["images"] for entry in balance.values())
    if not splits:
        balance[""] = _balance_below(contents, "")
    elif inside < len(contents.images):
        balance[""] = {"images": len(contents.images) - inside, "classes": {}, "empty": [], "imbalance": None}
    return balance


def _balance_below(contents: Contents, prefix: str) -> dict[str, Any]:
    inside = [name.removeprefix(prefix) for name in contents.images if name.startswith(prefix)]
    counts = Counter(name.partition("/")[0] if "/" in name else "" for name in inside)
    labelled = "" not in counts and len(counts) >= 2
    folders = [name.removeprefix(prefix) for name in contents.folders if name.startswith(prefix)]
    return {
        "images": len(inside),
        "classes": dict(sorted(counts.items())) if labelled else {},
        "empty": [name for name in folders if "/" not in name and name not in counts],
        "imbalance": round(max(counts.values()) / min(counts.values()), 2) if labelled else None,
    }


def _spread(values: array) -> dict[str, float]:
    if not values:
        return {}
    numbers = np.frombuffer(values, np.int64)
    return {"min": int(numbers.min()), "median": float(np.median(numbers)), "max": int(numbers.max())}
