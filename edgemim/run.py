"""One folder and one run.json a verb: what was asked, what came out, how it ended."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TextIO

from edgemim.config import Config, to_yaml
from edgemim.errors import EdgemimError, Interrupted, SavedOnSignal, UserError

RUNS = Path("runs")
_PACKAGES = ("edgemim", "numpy", "pillow", "torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "nncf")


class RunRecord:
    """Writes `config.yaml` and `run.json` into a folder: status 'running' on entry, the outcome on exit.

    Use as a context manager; put figures into `results`. With `enabled=False` (ranks other than 0) nothing is written;
    with `begin_later=True` nothing before `begin()`, so that a resume that is refused leaves the old record as it was.
    """

    def __init__(
        self, verb: str, folder: Path, config: Config, *, enabled: bool = True, begin_later: bool = False
    ) -> None:
        self.verb = verb
        self.folder = folder
        self.config = config
        self.enabled = enabled
        self.results: dict[str, Any] = {}
        self.warnings: list[str] = []
        self._started = time.time()
        self._begin_later, self._begun = begin_later, False

    def warn(self, message: str) -> None:
        """Keep a warning for run.json and show it on standard error."""
        self.warnings.append(message)
        if self.enabled:
            print(f"warning: {message}", file=sys.stderr)

    def __enter__(self) -> RunRecord:
        if not self._begin_later:
            self.begin()
        return self

    def begin(self) -> None:
        """Write the configuration and the status 'running'; once."""
        if self.enabled and not self._begun:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "config.yaml", to_yaml(self.config))
            self._write("running", None, None)
        self._begun = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not (self.enabled and self._begun):
            return
        if error is None:
            self._write("done", 0, None)
            return
        try:
            self._write(*_outcome(error))
        except UserError as second:  # the first fault is the one to report, a full disk causes both
            print(f"warning: {second}", file=sys.stderr)

    def _write(self, status: str, exit_code: int | None, error: str | None) -> None:
        now = time.time()
        record = {
            "verb": self.verb,
            "status": status,
            "exit_code": exit_code,
            "error": error,
            "command": sys.argv,
            "started": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "seconds": round(now - self._started, 2),
            "results": self.results,
            "warnings": self.warnings,
            "versions": installed_versions(),
            "python": platform.python_version(),
            "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
            "config": self.config.model_dump(mode="json"),
        }
        write_text(self.folder / "run.json", json.dumps(record, indent=2) + "\n")


def _outcome(error: BaseException) -> tuple[str, int, str]:
    """Status, exit code and sentence of what ended a verb."""
    if isinstance(error, EdgemimError):
        # Both exceptions mean that the work was saved first.
        stopped = isinstance(error, (SavedOnSignal, Interrupted))
        return "saved" if stopped else "failed", error.exit_code, str(error)
    return "failed", 130 if isinstance(error, KeyboardInterrupt) else 1, f"{type(error).__name__}: {error}"


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never half. Raises UserError on a full disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
        ) from error


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def prepare_folder(folder: Path, *, overwrite: bool = False, resume: bool = False, resumable: bool = False) -> None:
    """Make an output folder ready; an old result is neither lost nor mixed with a new one.

    `resume` goes on in a folder that holds something; `resumable` says that the verb has a --resume to ask for that.
    Raises UserError if the folder holds something and neither `overwrite` nor `resume` is set, or cannot be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; give --out a folder")
        # The lock file alone is no content: the lock is taken first, so that nobody else's folder is emptied.
        content = [path for path in folder.iterdir() if path.name != ".lock"] if folder.exists() else []
        if content and overwrite and not resume:
            _remove_content(folder, content)
        elif content and not resume:
            go_on = " --resume to go on," if resumable else ""
            raise UserError(f"{folder} is not empty; give another --out,{go_on} or --overwrite to lose what is in it")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error


def _remove_content(folder: Path, content: list[Path]) -> None:
    if "verb" not in read_record(folder):
        raise UserError(f"{folder} was not made by edgemim (it has no run.json of a verb); empty it yourself")
    for path in content:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class FolderLock:
    """Holds a folder for one process; a second run on it is refused at once. Released when the process ends, however.

    Processes forked meanwhile (readers of images) do not hold it, so that it is free as soon as its owner is dead.
    """

    _held: ClassVar[weakref.WeakSet[FolderLock]] = weakref.WeakSet()

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = open(folder / ".lock", "a+")  # noqa: SIM115 (held as long as the lock)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(f"another run is writing to {folder}; wait for it or choose another --out") from error

        FolderLock._held.add(self)

    def release(self) -> None:
        """Give the folder free."""
        self._file.close()

    @staticmethod
    def forget_in_child() -> None:
        """Called in a forked child: close its copies of the files, which would keep the locks alive."""
        for lock in list(FolderLock._held):
            lock.release()


os.register_at_fork(after_in_child=FolderLock.forget_in_child)


def default_folder(verb: str, root: Path = RUNS) -> Path:
    """A fresh folder name for a run without --out."""
    return root / f"{verb}-{datetime.now():%Y%m%d-%H%M%S}"


def runs_newest_first(verb: str, root: Path = RUNS) -> Iterator[Path]:
    """Finished runs of a verb below `root`, newest first."""
    found = []
    for path in root.glob("**/run.json"):
        record = read_record(path.parent)
        if record.get("verb") == verb and record.get("status") == "done":
            found.append((path.stat().st_mtime, path.parent))
    for _, folder in sorted(found, reverse=True):
        yield folder


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's run.json, or an empty mapping."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def find_run(given: Path | None, verb: str, root: Path = RUNS) -> Path:
    """The run that the user named, or the newest finished one of `verb`. Raises UserError if there is none."""
    if given is not None:
        if not given.is_dir():
            raise UserError(f"no run folder at {given}; give the folder that `edgemim {verb}` wrote")
        return given
    for folder in runs_newest_first(verb, root):
        print(f"using the newest {verb} run: {folder}")
        return folder
    raise UserError(f"no finished {verb} run below {root}/; run `edgemim {verb}` first or name a run folder")
