"""Engines that were built once, kept on disk under a key of all that they depend on; what is broken there is built anew."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgemim.errors import ModelRefused

_DIGEST_BYTES = 32
Engine = TypeVar("Engine")


def engine_key(facts: Mapping[str, Any]) -> str:
    """A file's name for what an engine depends on: device, driver, library, the model file's hash, shapes."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def cache_folder() -> Path:
    """A folder for engines that can be written and belongs to this user: below XDG_CACHE_HOME/edgemim, else below the
    system's folder for temporary files, else a new one there."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    bases = [Path(configured)] if os.path.isabs(configured) else []
    with contextlib.suppress(RuntimeError):  # no home directory
        bases.append(Path.home() / ".cache")
    own = f"edgemim-{os.getuid()}" if hasattr(os, "getuid") else "edgemim"
    for folder in (
        *(base / "edgemim" / "engines" for base in bases[:1]),
        Path(tempfile.gettempdir()) / own / "engines",
    ):
        if _usable(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="edgemim-engines-"))


def _usable(folder: Path) -> bool:
    """Others must not be able to put engines there: an engine is a program."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return not hasattr(os, "getuid") or folder.stat().st_uid == folder.parent.stat().st_uid == os.getuid()
    except OSError:
        return False


class EngineCache:
    """Engines by key in one folder, each file its digest and the engine; a full disk or a damaged file costs a build."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder()

    def path(self, key: str) -> Path:
        """Where the engine of a key is kept."""
        return self.folder / f"{key}.engine"

    def get(self, key: str) -> bytes | None:
        """The engine, or None if there is none; a damaged file is removed."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        digest, engine = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(engine).digest() == digest:
            return engine
        self.drop(key)
        return None

    def put(self, key: str, engine: bytes) -> bool:
        """Keep an engine, so that a reader sees all of it or nothing; says whether the disk took it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(hashlib.sha256(engine).digest() + engine)
            os.replace(file.name, self.path(key))
        except OSError:
            return False
        return True

    def drop(self, key: str) -> None:
        """Forget an engine."""
        with contextlib.suppress(OSError):
            self.path(key).unlink()

    def ready(
        self, key: str, *, build: Callable[[], bytes], load: Callable[[bytes], Engine | None]
    ) -> tuple[Engine, bool]:
        """The loaded engine of a key, and whether it was built for that: what `load` turns down is built anew.

        Raises ModelRefused if even a new engine cannot be loaded; what `build` raises passes.
        """
        kept = self.get(key)
        if kept is not None:
            if (engine := load(kept)) is not None:
                return engine, False
            self.drop(key)
        content = build()
        if (engine := load(content)) is None:
            raise ModelRefused("an engine was built, but the library cannot load it; is the GPU one that it supports?")
        self.put(key, content)
        return engine, True
