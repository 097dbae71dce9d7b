"""A folder that appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgemim.edge.artifact import MANIFEST_NAME
from edgemim.errors import UserError


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, an --out that cannot take the artifact. Raises UserError."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give --out a folder")
    content = {path.name for path in out.iterdir()} if out.exists() else set()
    if content and not overwrite:
        raise UserError(f"{out} is not empty; give another --out, or --overwrite to replace it")
    if content and MANIFEST_NAME not in content:
        raise UserError(f"{out} is no artifact; --overwrite replaces only folders with a {MANIFEST_NAME}")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all is done; on any error it vanishes and `out` stays."""
    out = out.resolve()  # a link stays, its target is replaced
    staging = out.with_name(f".{out.name}-{os.getpid()}.new")
    previous = out.with_name(f".{out.name}-{os.getpid()}.old")
    try:
        staging.mkdir(parents=True)
        yield staging
        if out.exists():
            out.rename(previous)
        staging.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; free space or choose another --out") from error
    finally:
        if previous.exists() and not out.exists():
            previous.rename(out)
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)
