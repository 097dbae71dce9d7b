"""One pass over sequences: start, follow, times and scores; broken frames end one sequence and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tracker import moving_target, tiny_tracker

from edgemim.commands.tracking.one_pass import Target, TrackerSource, no_motion, run_passes, track_sequence
from edgemim.edge.tracking.boxes import iou
from edgemim.edge.tracking.layouts import open_sequences
from edgemim.edge.tracking.results import finished
from edgemim.edge.tracking.sequences import Sequence, SequenceError
from edgemim.edge.tracking.tracker import Tracker
from edgemim.errors import EdgemimError

FRAMES = 12


def sequences(root: Path, names: tuple[str, ...] = ("a", "b", "c")) -> list[Sequence]:
    """The moving target, several times."""
    images, boxes = moving_target(FRAMES)
    for name in names:
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images, start=1):
            Image.fromarray(image).save(root / name / f"{number}.png")
        (root / name / "groundtruth.txt").write_text("".join(",".join(map(str, box)) + "\n" for box in boxes))
    return open_sequences("folder", root)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tracker(tmp_path_factory.mktemp("tracker")).folder


def test_a_sequence_is_followed_from_its_first_box(tmp_path: Path, artifact: Path) -> None:
    (truth,) = sequences(tmp_path, ("a",))
    found = track_sequence(Tracker.open(artifact, threads=1), truth)
    assert found.boxes.shape == (FRAMES, 4) and len(found.times_s) == len(found.scores) == FRAMES
    assert found.boxes[0].tolist() == list(truth.init_box)
    assert iou(found.boxes, truth.boxes).min() > 0.5
    assert min(found.times_s) > 0 and found.scores[0] == 1.0


def test_no_motion_repeats_the_first_box(tmp_path: Path) -> None:
    (truth,) = sequences(tmp_path, ("a",))
    assert (no_motion(truth).boxes == truth.boxes[0]).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_side_by_side_as_alone(tmp_path: Path, artifact: Path, workers: int) -> None:
    truths = sequences(tmp_path / "data")
    (tmp_path / "data" / "b" / "5.png").write_bytes(b"broken")
    Image.new("RGB", (80, 60)).save(tmp_path / "data" / "c" / "7.png")
    target, done = Target(tmp_path / "p", tmp_path / "g"), []
    faults = run_passes(TrackerSource(artifact), truths, target, workers=workers, on_done=done.append)
    assert sorted(done) == ["a", "b", "c"] and sorted(faults) == ["b", "c"]
    assert (
        "sequence b, frame 5 of 12: image" in faults["b"] and "sequence c, frame 7 of 12: the image is" in faults["c"]
    )
    assert finished(target.pytracking, "a", FRAMES)
    assert not (target.pytracking / "b.txt").exists() and not (target.got10k / "b" / "b_001.txt").exists()
    alone = track_sequence(Tracker.open(artifact, threads=1), truths[0]).boxes
    np.testing.assert_allclose(np.loadtxt(target.pytracking / "a.txt"), alone, atol=5e-5)
    np.testing.assert_allclose(np.loadtxt(target.got10k / "a" / "a_001.txt", delimiter=","), alone, atol=5e-4)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tracker_that_does_not_open_is_one_sentence(tmp_path: Path, artifact: Path, workers: int) -> None:
    truths = sequences(tmp_path / "data")
    source = TrackerSource(artifact, key="onnx-int9")
    with pytest.raises(EdgemimError, match="onnx-int9"):
        run_passes(source, truths, Target(tmp_path / "p", tmp_path / "g"), workers=workers, on_done=lambda _: None)


def test_the_first_frame_counts_too(tmp_path: Path, artifact: Path) -> None:
    (truth,) = sequences(tmp_path, ("a",))
    truth.boxes[0] = [500, 500, 20, 20]
    with pytest.raises(SequenceError, match=r"sequence a, frame 1 of 12: box 500,500,20,20 lies outside the image"):
        track_sequence(Tracker.open(artifact, threads=1), truth)
