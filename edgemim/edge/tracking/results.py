"""A tracker's result files: any tracker's are read, ours are written as PyTracking and the GOT-10k toolkit write theirs."""

from __future__ import annotations

import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from edgemim.edge.tracking.boxes import parse_boxes
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.errors import UserError
from edgemim.run import write_text

# Files beside a sequence's boxes: times, confidences, several objects.
_BESIDE = re.compile(r"_(time|times|object_presence_scores|confidence|scores?|all_boxes|all_scores|segmentation)$")
_REPETITION = re.compile(r"_(\d{3})$")
# Of OTB's Human4 one target alone is annotated: some number it, some do not.
_ALIASES = {"human4_2": "human4", "human4": "human4_2"}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".zip")
TEMPORARY = "edgemim-archive-"
"""Begins the name of the folder that an archive is unpacked into."""
_TEXT = frozenset({".txt", ".json", ".label", ".ini"})
_MAX_FILE_BYTES, _MAX_FILES = 64 * 2**20, 200_000


class ResultsFolder:
    """The box files of one tracker: `SEQUENCE.txt` (PyTracking, pysot, OSTrack) or `SEQUENCE/SEQUENCE_001.txt` (GOT-10k), at
    any depth. Columns by comma, tab or space, whole numbers or floats. Of several repetitions the first is read.

    Names are found whatever their capitals and with '.' or '-' for '_' (Jogging.1, jogging-1), and behind 'uav_'.
    """

    def __init__(self, root: Path, name: str = "") -> None:
        self.root = root
        self.name = name or root.resolve().name
        self._files: dict[str, Path] = {}
        if not root.is_dir():
            raise UserError(f"no results at {root}; give a tracker's folder of SEQUENCE.txt, or an archive of it")
        for path in sorted(root.rglob("*.txt")):
            stem = _sequence_of(path)
            if stem is None:
                continue
            if stem in self._files:
                raise UserError(
                    f"{root} holds two results of {stem}, {self._files[stem]} and {path}: give one tracker's folder"
                )
            self._files[stem] = path
        self._folded = {_fold(stem): path for stem, path in self._files.items()}
        if not self._files:
            raise UserError(f"{root} holds no SEQUENCE.txt and no SEQUENCE/SEQUENCE_001.txt; give a tracker's folder")

    def __len__(self) -> int:
        return len(self._files)

    def find(self, sequence: str) -> Path | None:
        """The file of one sequence, if there is one."""
        folded = _fold(sequence)
        for name in (folded, f"uav_{folded}", _ALIASES.get(folded, "")):
            if name in self._folded:
                return self._files.get(sequence, self._folded[name])
        return None

    def read(self, sequence: str) -> np.ndarray:
        """Boxes [n, 4] of one sequence. Raises SequenceError if there are none, or they are no boxes."""
        path = self.find(sequence)
        if path is None:
            raise SequenceError(f"sequence {sequence}: no results in {self.root}")
        try:
            boxes = parse_boxes(path.read_text(), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise SequenceError(f"sequence {sequence}: {path} cannot be read: {error}") from error
        except UserError as error:
            raise SequenceError(f"sequence {sequence}: {error}") from error
        if not len(boxes):
            raise SequenceError(f"sequence {sequence}: {path} is empty")
        return boxes


def _sequence_of(path: Path) -> str | None:
    stem = path.stem
    if _BESIDE.search(stem):
        return None
    found = _REPETITION.search(stem)
    if found and stem[: found.start()] == path.parent.name:
        return path.parent.name if int(found[1]) == 1 else None
    return stem


def _fold(name: str) -> str:
    return re.sub(r"[.-]", "_", name.casefold())


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A folder as it is; a .tar, .tar.gz, .tar.xz or .zip as a temporary folder with its text files.

    Of an archive that holds a single folder, that folder. Raises UserError if it cannot be read.
    """
    if not (path.is_file() and path.name.lower().endswith(_ARCHIVES)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as temporary:
        folder = Path(temporary)
        try:
            _unpack(path, folder)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise UserError(f"{path} cannot be unpacked, it is damaged or no archive: {error}") from error
        inside = list(folder.iterdir())
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def archive_name(path: Path) -> str:
    """A name for a folder or an archive, without the archive's suffix."""
    suffix = next((end for end in sorted(_ARCHIVES, key=len, reverse=True) if path.name.lower().endswith(end)), "")
    return path.name[: len(path.name) - len(suffix)] if path.is_file() else path.resolve().name


def _unpack(path: Path, folder: Path) -> None:
    """Write the text files of an archive below `folder`; nothing else in it is looked at."""
    with ExitStack() as stack:
        if path.name.lower().endswith(".zip"):
            members = _zip_members(stack.enter_context(zipfile.ZipFile(path)))
        else:
            members = _tar_members(stack.enter_context(tarfile.open(path)))
        for count, (name, size, content) in enumerate(members):
            parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
            if ".." in parts or PurePosixPath(name).suffix.lower() not in _TEXT:
                continue
            if size > _MAX_FILE_BYTES or count > _MAX_FILES:
                raise ValueError(f"{name} is larger than any list of boxes")
            target = folder.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read(_MAX_FILE_BYTES))


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for member in archive:
        content = archive.extractfile(member) if member.isreg() else None
        if content is not None:
            yield member.name, member.size, content


def _zip_members(archive: zipfile.ZipFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for member in archive.infolist():
        if not member.is_dir():
            with archive.open(member) as content:
                yield member.filename, member.file_size, content


def write_pytracking(
    folder: Path,
    sequence: str,
    boxes: np.ndarray,
    times_s: Sequence[float],
    scores: Sequence[float] = (),
    *,
    integers: bool = False,
) -> Path:
    """`SEQUENCE.txt` (tab separated) with `_time.txt` (the start's first) and, where given, `_object_presence_scores.txt`.

    Floats, for PyTracking reads them; `integers` truncates as PyTracking's own writer does, which costs up to 0.4 points
    of AUC. The boxes are written last and at once, so that their file says that the sequence is finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{sequence}_time.txt", _lines(times_s, "%.6f"))
    if len(scores):
        write_text(folder / f"{sequence}_object_presence_scores.txt", _lines(scores, "%.6f"))
    rows = np.trunc(boxes) if integers else boxes
    return _write_rows(folder / f"{sequence}.txt", rows, "%d" if integers else "%.4f", "\t")


def write_got10k(folder: Path, sequence: str, boxes: np.ndarray, times_s: Sequence[float]) -> Path:
    """`SEQUENCE/SEQUENCE_001.txt` (comma separated, three decimals) and `SEQUENCE_time.txt`, as the toolkit's `_record`."""
    inside = folder / sequence
    inside.mkdir(parents=True, exist_ok=True)
    write_text(inside / f"{sequence}_time.txt", _lines(times_s, "%.8f"))
    return _write_rows(inside / f"{sequence}_001.txt", boxes, "%.3f", ",")


def finished(folder: Path, sequence: str, frames: int) -> bool:
    """Whether `write_pytracking` has written as many boxes as the sequence has frames."""
    try:
        return len(parse_boxes((folder / f"{sequence}.txt").read_text(), sequence)) == frames
    except (OSError, UserError, UnicodeDecodeError):
        return False


def _lines(values: Sequence[float], form: str) -> str:
    return "".join(form % value + "\n" for value in values)


def _write_rows(path: Path, rows: np.ndarray, form: str, delimiter: str) -> Path:
    write_text(path, "".join(delimiter.join(form % value for value in row) + "\n" for row in rows))
    return path
