"""The files of one run of `edgemim track VIDEO`: boxes, drawn frames and the folder of run.json; nothing old is lost."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.draw import VIDEO_CODECS, FrameSink
from edgemim.errors import UserError
from edgemim.run import default_folder, prepare_folder

if TYPE_CHECKING:
    from edgemim.commands.track import TrackConfig

_COLUMNS = ("frame", "left", "top", "width", "height", "score", "lost")


class Outputs:
    """The files of one run: boxes as CSV line by line, drawn frames where asked for, and the folder of run.json."""

    def __init__(self, config: TrackConfig) -> None:
        video = config.out is not None and config.out.suffix.lower() in VIDEO_CODECS
        self.drawn = None if config.out is None else config.out if video else config.out / "frames"
        for path in (config.csv, config.out if video else None):
            if path is not None and path.exists() and not (config.overwrite and path.is_file()):
                raise UserError(f"{path} exists already; give another path, or --overwrite to replace it")
        if config.out is None or video:
            self.folder = _fresh_folder()
        else:
            self.folder = config.out
            prepare_folder(self.folder, overwrite=config.overwrite)
        self.csv = config.csv or self.folder / "boxes.csv"
        self._sink: FrameSink | None = None
        try:
            self.csv.parent.mkdir(parents=True, exist_ok=True)
            # Line by line: whatever ends the run, the boxes so far are on the disk.
            self._file: TextIO = open(self.csv, "w", buffering=1, newline="")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise UserError(f"cannot write {self.csv}: {error.strerror or error}; choose another --csv") from error
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(_COLUMNS)

    def write_box(self, frame: int, box: Box, score: float, lost: bool) -> None:
        """Add one line. Raises UserError on a full disk."""
        numbers = [f"{value:.3f}" for value in box]
        try:
            self._rows.writerow([frame, *numbers, f"{score:.4f}", int(lost)])
        except OSError as error:
            raise UserError(f"cannot write {self.csv}: {error.strerror or error}; free space") from error

    def write_frame(self, image: np.ndarray, fps: float) -> None:
        """Add one drawn frame to the video or folder. Raises UserError if it cannot be written."""
        assert self.drawn is not None
        if self._sink is None:
            self._sink = FrameSink(self.drawn, fps)
        self._sink.write(image)

    def close(self) -> None:
        """Finish all files. Raises UserError if the video is not there."""
        self._file.close()
        if self._sink is not None:
            self._sink.close()


def _fresh_folder() -> Path:
    """A new folder for run.json, also where several runs begin in the same second. Raises UserError."""
    base = default_folder("track")
    for number in itertools.count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror or error}; give a folder by --out") from error
        return path
    raise AssertionError("unreachable")
