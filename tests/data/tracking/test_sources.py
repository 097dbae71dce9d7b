"""Which frames and which sources are drawn, and how often, against an enumeration of the published rule."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgemim.data.tracking.pairs import Shot
from edgemim.data.tracking.sources import Mixture, SequenceSource, StillSource, Track, causal_frames
from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.sequences import Sequence
from edgemim.errors import UserError

DRAWS = 20_000


def enumerated(visible: list[int], frames: int, gap: int) -> dict[tuple[int, int], float]:
    """Probability of each pair where the first gap suffices: any visible template but the last frame, any later one."""
    templates = [frame for frame in range(frames - 1) if frame in visible]
    chances = {}
    for template in templates:
        later = [frame for frame in range(template + 1, template + gap) if frame in visible]
        for search in later:
            chances[template, search] = 1 / len(templates) / len(later)
    return chances


@pytest.mark.parametrize("gap", [4, 200])
def test_frames_are_drawn_as_published(gap: int) -> None:
    visible = [0, 1, 3, 4, 6, 8, 9]
    rng = random.Random(gap)
    counts = Counter(causal_frames(np.array(visible, np.int32), 10, rng, gap) for _ in range(DRAWS))
    expected = enumerated(visible, 10, gap)
    assert set(counts) == set(expected) and sum(expected.values()) == pytest.approx(1)
    for pair, chance in expected.items():
        assert abs(counts[pair] - DRAWS * chance) < 5 * (DRAWS * chance * (1 - chance)) ** 0.5, pair


def test_where_nothing_is_visible_the_gap_grows() -> None:
    visible = np.array([2, 700, 899], np.int32)
    pairs = {causal_frames(visible, 900, random.Random(seed)) for seed in range(60)}
    # 700 -> 899 lies within 199 frames and is found at once; from 2 the gap must grow to 699 first.
    assert pairs <= {(2, 700), (2, 899), (700, 899)} and (700, 899) in pairs
    assert causal_frames(np.array([2, 700], np.int32), 900, random.Random(0)) == (2, 700)
    last = np.array([0, 9], np.int32)
    assert causal_frames(last, 10, random.Random(1), 2) == (0, 9)


def track(name: str, frames: int, hidden: tuple[int, ...] = ()) -> Track:
    boxes = np.stack([np.arange(frames), np.zeros(frames), np.full(frames, 5.0), np.full(frames, 4.0)], axis=1)
    absent = np.isin(np.arange(frames), hidden)
    paths = tuple(Path("/set", name, "img", f"{number:08d}.jpg") for number in range(1, frames + 1))
    return Track.of(Sequence(name, paths, boxes, absent))


def test_a_track_gives_the_frame_and_its_box() -> None:
    kept = track("dog-1", 30, hidden=(4, 5))
    assert len(kept) == 30 and 4 not in kept.visible and 6 in kept.visible
    assert kept.shot(7) == Shot(Path("/set/dog-1/img/00000008.jpg"), Box(7, 0, 5, 4))


def test_sequences_are_as_likely_whatever_their_length() -> None:
    source = SequenceSource("set", [track("short", 25), track("long", 2000, hidden=(0, 1))])
    rng = random.Random(3)
    pairs = [source.draw(rng) for _ in range(2000)]
    short = sum(pair.template.path.parts[2] == "short" for pair in pairs)
    assert 900 < short < 1100
    for template, search in pairs:
        assert template.path.parent == search.path.parent
        gap = int(search.path.stem) - int(template.path.stem)
        assert 0 < gap < 200
        assert template.path.stem not in ("00000001", "00000002") or "short" in template.path.parts


def test_sources_get_their_shares() -> None:
    def still(name: str) -> StillSource:
        return StillSource(name, [Shot(Path(name), Box(0, 0, 9, 9))])

    mixture = Mixture([still("a"), still("b"), still("c")], [1, 0, 3])
    rng = random.Random(0)
    counts = Counter(mixture.draw(rng).template.path.name for _ in range(8000))
    assert set(counts) == {"a", "c"} and abs(counts["a"] - 2000) < 200
    pair = mixture.draw(rng)
    assert pair.template == pair.search


def test_fingerprints_tell_boxes_and_shares_apart() -> None:
    whole, hidden = SequenceSource("s", [track("x", 30)]), SequenceSource("s", [track("x", 30, hidden=(3,))])
    assert whole.fingerprint == SequenceSource("s", [track("x", 30)]).fingerprint != hidden.fingerprint
    assert Mixture([whole], [1]).fingerprint != Mixture([whole], [2]).fingerprint


def test_shares_that_are_none_are_refused() -> None:
    for ratios in ([], [0.0], [-1.0], [1.0, 1.0]):
        with pytest.raises(UserError, match="ratios"):
            Mixture([StillSource("a", [])], ratios)
