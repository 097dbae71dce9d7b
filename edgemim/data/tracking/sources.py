"""Where pairs come from: sequences, sampled causally as published, still pictures, and mixtures of both in given shares."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgemim.data.tracking.pairs import Shot, ShotPair
from edgemim.edge.tracking import sequences
from edgemim.edge.tracking.boxes import Box
from edgemim.errors import UserError

MAX_GAP = 200
_WIDENED_BY = 5


class PairSource(Protocol):
    """Gives pairs; which one follows from the generator's numbers alone."""

    name: str
    fingerprint: str
    """Names the list of files and boxes (not the pixels)."""

    def __len__(self) -> int:
        """Targets: sequences, or objects of still pictures."""
        ...

    def draw(self, rng: random.Random) -> ShotPair:
        """One pair. Raises ImageError or OSError where a picture must be opened for that and cannot be."""
        ...


@dataclass(frozen=True)
class Track:
    """A sequence in little memory: of millions of frames, a name each and four numbers."""

    name: str
    folder: str
    files: str
    """Names of the frames below the folder, joined by NUL."""
    boxes: np.ndarray
    """float32 [n, 4]."""
    visible: np.ndarray
    """int32, ascending: the frames in which the target is to be seen."""

    @staticmethod
    def of(sequence: sequences.Sequence) -> Track:
        """The track of a sequence with frames."""
        folder = os.path.commonpath([path.parent for path in sequence.frames])
        files = "\0".join(os.path.relpath(path, folder) for path in sequence.frames)
        visible = np.flatnonzero(sequence.usable).astype(np.int32)
        return Track(sequence.name, folder, files, sequence.boxes.astype(np.float32), visible)

    def __len__(self) -> int:
        return len(self.boxes)

    def shot(self, frame: int) -> Shot:
        """The target in one frame."""
        return Shot(Path(self.folder, self.files.split("\0")[frame]), Box.of(self.boxes[frame]))


class SequenceSource:
    """Pairs of frames of the same sequence; each sequence is as likely as another, however long."""

    def __init__(self, name: str, tracks: Sequence[Track], max_gap: int = MAX_GAP) -> None:
        self.name, self.tracks, self.max_gap = name, list(tracks), max_gap
        digest = hashlib.blake2b(f"{name}/{max_gap}".encode(), digest_size=16)
        for track in self.tracks:
            digest.update(f"\0{track.name}\0{track.files}".encode("utf-8", "surrogateescape"))
            digest.update(np.ascontiguousarray(track.boxes).data)
            digest.update(track.visible.data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.tracks)

    def draw(self, rng: random.Random) -> ShotPair:
        """A template, and a search frame after it."""
        track = self.tracks[rng.randrange(len(self.tracks))]
        template, search = causal_frames(track.visible, len(track), rng, self.max_gap)
        return ShotPair(track.shot(template), track.shot(search))


def causal_frames(visible: np.ndarray, frames: int, rng: random.Random, max_gap: int = MAX_GAP) -> tuple[int, int]:
    """Template and search frame of a sequence, both visible: the template any but the last frame, the search region one
    of the `max_gap` - 1 after it; where none of these is visible, both are drawn again with a gap wider by 5.

    As OSTrack's published sampler in its causal mode (arXiv 2203.11991).

    Args:
        visible: numbers of the visible frames, ascending, at least two.
        frames: length of the sequence.
        rng: source of the two choices.
        max_gap: frames after the template's at which the choice ends.
    """
    starts = int(np.searchsorted(visible, frames - 1))
    while True:
        template = int(visible[rng.randrange(starts)])
        first, last = np.searchsorted(visible, (template + 1, template + max_gap))
        if last > first:
            return template, int(visible[rng.randrange(int(first), int(last))])
        max_gap += _WIDENED_BY


class StillSource:
    """The same picture twice, for objects that have a box; crop and jitter make the difference."""

    def __init__(self, name: str, shots: Sequence[Shot]) -> None:
        self.name, self.shots = name, list(shots)
        text = "\0".join(f"{shot.path}/{tuple(shot.box)}" for shot in self.shots)
        self.fingerprint = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.shots)

    def draw(self, rng: random.Random) -> ShotPair:
        """One object, twice."""
        shot = self.shots[rng.randrange(len(self.shots))]
        return ShotPair(shot, shot)


class Mixture:
    """Sources, each with its share of the pairs."""

    def __init__(self, sources: Iterable[PairSource], ratios: Iterable[float]) -> None:
        self.sources, self.ratios = tuple(sources), tuple(ratios)
        if not self.sources or len(self.sources) != len(self.ratios) or min(self.ratios) < 0 or not sum(self.ratios):
            raise UserError(f"ratios {list(self.ratios)} for {len(self.sources)} sources: one each, not all zero")
        self._ends = list(itertools.accumulate(self.ratios))
        text = "\0".join(
            f"{s.name}/{ratio}/{s.fingerprint}" for s, ratio in zip(self.sources, self.ratios, strict=True)
        )
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def draw(self, rng: random.Random) -> ShotPair:
        """A pair of a source that is chosen by its share."""
        place = bisect.bisect_right(self._ends, rng.random() * self._ends[-1])
        return self.sources[min(place, len(self.sources) - 1)].draw(rng)
