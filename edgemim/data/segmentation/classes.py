"""Names of classes from a file beside the images: JSON, a text file, ADE20K's table or a table of colours."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemim.edge.segmentation import IGNORE
from edgemim.errors import UserError

CLASS_FILES = ("classes.json", "classes.txt", "class_dict.csv", "labels.txt", "codes.txt")
_VOID = ("void", "ignore", "unlabelled", "unlabeled")

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """Names of the classes in the order of their numbers; for masks that are colour pictures, each class's colour."""

    names: tuple[str, ...]
    colours: dict[Colour, int] | None = None


def find_classes(folder: Path, given: Path | None) -> ClassList:
    """The classes that a file names: the one given, or the first of classes.json, classes.txt, class_dict.csv,
    labels.txt and codes.txt in the folder.

    JSON is a list of names, or a mapping from name to [red, green, blue]; text has a name a line; CSV has a header and
    lines of name, r, g, b. A colour named void is ignored.

    Raises:
        UserError: without such a file, or if it does not say at least two different names.
    """
    found = [given] if given else [folder / name for name in CLASS_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"no class names in {folder}; write them into classes.txt, a name a line, or give --task.classes"
        )
    path = found[0]
    try:
        classes = _read(path)
    except OSError as error:
        raise UserError(f"cannot read the class names in {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise UserError(
            f"{path} does not hold class names ({error}); write a JSON list of names, or a name a line"
        ) from error
    return _checked(classes, path)


def has_class_file(folder: Path) -> bool:
    """Whether the folder holds a file of class names."""
    return any((folder / name).is_file() for name in CLASS_FILES)


def _read(path: Path) -> ClassList:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        content: Any = json.loads(text)
        if isinstance(content, dict):
            return _coloured([(str(name), *map(int, colour)) for name, colour in content.items()])
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise ValueError("neither a list of names nor a mapping from name to colour")
        return ClassList(tuple(content))
    if path.suffix == ".csv":
        return _coloured(
            [(row[0].strip(), *map(int, row[1:4])) for row in list(csv.reader(text.splitlines()))[1:] if row]
        )
    if path.name == "objectInfo150.txt":
        rows = [line.split("\t") for line in text.splitlines()[1:] if line.strip()]
        return ClassList(tuple(row[-1].partition(",")[0].strip() for row in rows))
    return ClassList(tuple(line.strip() for line in text.splitlines() if line.strip()))


def _coloured(rows: list[tuple[Any, ...]]) -> ClassList:
    names, colours = [], {}
    for name, *colour in rows:
        if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
            raise ValueError(f"the colour of {name!r} is not three numbers from 0 to 255")
        if tuple(colour) in colours:
            raise ValueError(f"the colour of {name!r} stands for another class already")
        void = name.lower() in _VOID
        colours[tuple(colour)] = IGNORE if void else len(names)
        names += [] if void else [name]
    return ClassList(tuple(names), colours)


def _checked(classes: ClassList, path: Path) -> ClassList:
    names = classes.names
    if len(names) < 2:
        raise UserError(f"{path} names {len(names)} class{'es' * (not names)}; at least two are needed")
    if len(names) > IGNORE:
        raise UserError(f"{path} names {len(names)} classes; more than {IGNORE} do not fit into 8 bits")
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"{path} names the class {doubled!r} twice")
    return classes
