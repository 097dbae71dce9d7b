"""TrackingNet's layout: TRAIN_0 to TRAIN_11, each with anno/SEQUENCE.txt and frames/SEQUENCE/0.jpg, 1.jpg, ..."""

from __future__ import annotations

import re
from pathlib import Path

from edgemim.edge.tracking.annotations import Annotations
from edgemim.edge.tracking.sequences import Sequence, SequenceError, make_sequence, natural_key
from edgemim.errors import UserError


class TrackingNet(Annotations):
    """TrackingNet: sequences of all the chunks TRAIN_* that are there, or of those that the split names.

    A split is a comma-separated list of numbers, such as 0,1,2,3.
    """

    def names(self) -> list[str]:
        """CHUNK/SEQUENCE, in natural order."""
        found = (path for chunk in self._chunks() for path in (chunk / "anno").glob("*.txt"))
        return sorted((f"{path.parent.parent.name}/{path.stem}" for path in found), key=natural_key)

    def read(self, name: str) -> Sequence:
        """One sequence. There are no flags of absence."""
        chunk, _, stem = name.partition("/")
        annotation = self.root / chunk / "anno" / f"{stem}.txt"
        if not annotation.is_file():
            raise SequenceError(f"sequence {name}: no annotation at {annotation}")
        frames = self.frames_in(self.root / chunk / "frames" / stem)
        return make_sequence(name, annotation, self.boxes_in(name, annotation), frames)

    def _chunks(self) -> list[Path]:
        wanted = [part.strip() for part in self.split.split(",") if part.strip()]
        chunks = [self.root / f"TRAIN_{number}" for number in wanted]
        if not wanted:
            chunks = [path for path in self.root.glob("TRAIN_*") if re.fullmatch(r"TRAIN_\d+", path.name)]
        missing = [path for path in chunks if not (path / "anno").is_dir()]
        if missing or not chunks:
            where = missing[0] / "anno" if missing else self.root / "TRAIN_0" / "anno"
            raise UserError(f"no folder at {where}; TrackingNet keeps boxes in TRAIN_0/anno, frames in TRAIN_0/frames")
        return sorted(chunks, key=lambda path: natural_key(path.name))
