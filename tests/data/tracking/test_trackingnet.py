"""TrackingNet's chunks: which sequences there are, frames in the order of their numbers, faults named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracking_sets import write_trackingnet

from edgemim.data.tracking.trackingnet import TrackingNet
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trackingnet")
    write_trackingnet(root, frames=12)
    return root


def test_all_chunks_or_those_of_the_split(root: Path) -> None:
    assert TrackingNet(root).names() == ["TRAIN_0/v01", "TRAIN_0/v02", "TRAIN_1/v11", "TRAIN_1/v12"]
    assert TrackingNet(root, split="1").names() == ["TRAIN_1/v11", "TRAIN_1/v12"]


def test_frames_come_by_number(root: Path) -> None:
    sequence = TrackingNet(root).read("TRAIN_0/v01")
    assert [path.name for path in sequence.frames] == [f"{number}.jpg" for number in range(12)]
    assert sequence.boxes.shape == (12, 4) and sequence.usable.all()


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder at .*TRAIN_7/anno"):
        TrackingNet(root, split="0,7").names()
    with pytest.raises(UserError, match=r"TRAIN_0/anno"):
        TrackingNet(tmp_path).names()
    with pytest.raises(SequenceError, match=r"v99"):
        TrackingNet(root).read("TRAIN_0/v99")
