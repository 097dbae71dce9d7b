"""Names of classes from a file: they fix which classes there are and in which order."""

from __future__ import annotations

import json
from pathlib import Path

from edgemim.errors import UserError


def read_class_names(file: Path) -> tuple[str, ...]:
    """Names out of a text file, one a line, or out of a JSON list. Blank lines at the end do not count.

    Raises:
        UserError: if it cannot be read, or holds fewer than two names, an empty one or one twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        names = json.loads(text) if file.suffix.lower() == ".json" else text.rstrip().splitlines()
    except OSError as error:
        raise UserError(f"cannot read the class names in {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{file} does not hold class names ({error}); write one a line, or a JSON list") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} does not hold a list of class names; write one a line, or a JSON list")
    return _checked(tuple(name.strip() for name in names) if file.suffix.lower() != ".json" else tuple(names), file)


def _checked(names: tuple[str, ...], file: Path) -> tuple[str, ...]:
    if len(names) < 2:
        raise UserError(f"{file} names {len(names)} class{'es' * (not names)}; at least two are needed")
    seen: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{file}: name {line} is empty; write one class name a line")
        if name in seen:
            raise UserError(f"{file} names the class {name!r} twice (as {seen[name]} and {line}); remove one")
        seen[name] = line
    return names
