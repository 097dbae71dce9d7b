"""What a sequence promises: order of frames, boxes that fit them, and sentences where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.sequences import Sequence, SequenceError, list_frames, make_sequence, natural_key

BOXES = np.array([[1.0, 2, 3, 4]] * 3)


def test_frames_are_in_natural_order(tmp_path: Path) -> None:
    names = ["1.jpg", "2.jpg", "10.jpg", "img9.PNG", "img10.png"]
    for name in [*reversed(names), ".hidden.jpg", "notes.txt"]:
        (tmp_path / name).touch()
    assert [path.name for path in list_frames(tmp_path)] == names
    assert list_frames(tmp_path / "absent") == ()
    assert sorted(["a10", "a9", "b", "a²"], key=natural_key) == ["a9", "a10", "a²", "b"]


def test_boxes_must_fit_frames() -> None:
    frames = (Path("1.jpg"), Path("2.jpg"))
    with pytest.raises(SequenceError, match=r"sequence s: the annotation is longer .* 3 boxes in gt.txt for 2 frames"):
        make_sequence("s", Path("gt.txt"), BOXES, frames)
    with pytest.raises(SequenceError, match=r"the annotation is shorter .* give a row for each frame"):
        make_sequence("s", Path("gt.txt"), BOXES[:2], (*frames, Path("3.jpg")))
    with pytest.raises(SequenceError, match="no images beside"):
        make_sequence("s", Path("gt.txt"), BOXES, ())
    with pytest.raises(SequenceError, match="holds no box"):
        make_sequence("s", Path("gt.txt"), BOXES[:0], frames)
    with pytest.raises(SequenceError, match="2 flags of absence for 3 boxes"):
        make_sequence("s", Path("gt.txt"), BOXES, None, absent=np.zeros(2))


def test_a_starting_box_alone_is_a_sequence_to_track() -> None:
    sequence = make_sequence("s", Path("gt.txt"), BOXES[:1], tuple(Path(f"{i}.jpg") for i in range(4)))
    assert len(sequence) == 4 and not sequence.annotated
    assert sequence.init_box == Box(1, 2, 3, 4)
    assert sequence.absent.tolist() == [False, True, True, True]


def test_absence_is_by_flag_or_by_nan() -> None:
    boxes = BOXES.copy()
    boxes[1] = np.nan
    assert make_sequence("s", Path("x"), boxes, None).absent.tolist() == [False, True, False]
    flagged = make_sequence("s", Path("x"), boxes, None, absent=np.array([0, 0, 1]))
    assert flagged.absent.tolist() == [False, True, True] and flagged.flagged
    zero = make_sequence("s", Path("x"), np.array([[1.0, 2, 3, 4], [0, 0, 0, 0]]), None)
    assert zero.absent.tolist() == [False, False] and zero.usable.tolist() == [True, False]


@pytest.mark.parametrize("first", [[np.nan] * 4, [5, 5, 0, 3], [5, 5, 3, -1]])
def test_a_tracker_cannot_start_from_nothing(first: list[float]) -> None:
    sequence = make_sequence("bag", Path("x"), np.array([first, [1, 2, 3, 4]], float), None)
    with pytest.raises(SequenceError, match="sequence bag: the first frame's box is"):
        _ = sequence.init_box


def test_size_of_frames(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "1.png")
    frames = (tmp_path / "1.png",)
    no = np.zeros(1, bool)
    assert Sequence("s", frames, BOXES[:1], no).image_size() == (30, 20)
    assert Sequence("s", frames, BOXES[:1], no, size_px=(7, 8)).image_size() == (7, 8)
    with pytest.raises(SequenceError, match="there are no frames"):
        Sequence("s", (), BOXES[:1], no).image_size()
    (tmp_path / "1.png").write_text("x")
    with pytest.raises(SequenceError, match="cannot be read as an image"):
        Sequence("s", frames, BOXES[:1], no).image_size()
