"""What is drawn lies where the box is, wherever that is; what is written can be read again."""

from pathlib import Path

import numpy as np
import pytest

from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.draw import VIDEO_CODECS, FrameSink, draw_box
from edgemim.edge.tracking.frames import open_frames
from edgemim.errors import UserError

GREY = np.full((240, 320, 3), 128, np.uint8)


def changed(drawn: np.ndarray) -> np.ndarray:
    return (drawn != GREY).any(axis=2)


def test_the_frame_of_the_box_is_drawn_and_its_inside_is_not() -> None:
    given = GREY.copy()
    drawn = draw_box(given, Box(100, 80, 60, 50), "0.93")
    assert np.array_equal(given, GREY)
    mask = changed(drawn)
    for row, column in ((80, 130), (130, 130), (105, 100), (105, 160)):
        assert mask[row, column]
    assert not mask[90:120, 110:150].any()
    assert mask[60:76, 100:140].any()  # the score, above
    assert not mask[:, 200:].any()


def test_a_lost_box_has_another_colour_and_open_sides() -> None:
    found, lost = (draw_box(GREY, Box(100, 80, 80, 80), "x", lost=flag) for flag in (False, True))
    assert changed(found)[160, 140] and not changed(lost)[160, 140]
    assert changed(lost)[160, 105]
    assert tuple(found[160, 105]) != tuple(lost[160, 105])


@pytest.mark.parametrize(
    "box", [Box(-30, -30, 60, 60), Box(300, 220, 60, 60), Box(0, 0, 320, 240), Box(315, 0, 4, 240), Box(5, 2, 10, 10)]
)
def test_text_stays_in_the_image(box: Box) -> None:
    """The plate is black: at least so much of it is visible as one at a free place has."""
    free = (draw_box(GREY, Box(100, 100, 50, 50), "lost 0.12", lost=True) == 0).all(axis=2).sum()
    here = (draw_box(GREY, box, "lost 0.12", lost=True) == 0).all(axis=2).sum()
    assert here > 0.6 * free


def test_speed_stands_in_the_corner() -> None:
    drawn = draw_box(GREY, Box(200, 150, 50, 50), "0.9", speed="62 fps")
    assert changed(drawn)[2:12, 2:40].mean() > 0.9


def test_a_very_small_image() -> None:
    assert draw_box(np.zeros((8, 8, 3), np.uint8), Box(1, 1, 4, 4), "0.93", speed="1 fps").shape == (8, 8, 3)


@pytest.mark.parametrize("suffix", sorted(VIDEO_CODECS))
def test_videos_can_be_read_again(tmp_path: Path, suffix: str) -> None:
    sink = FrameSink(tmp_path / "new" / f"v{suffix}", 20.0)
    for number in range(5):
        sink.write(draw_box(GREY, Box(20 * number, 80, 60, 50), "0.9"))
    sink.close()
    with open_frames(sink.path, "opencv") as source:
        found = list(source)
    assert len(found) == sink.count == 5 and source.fps == 20
    assert np.abs(found[0].astype(int) - 128).mean() < 12


def test_a_folder_of_frames(tmp_path: Path) -> None:
    sink = FrameSink(tmp_path / "frames", 0.0)
    for _ in range(3):
        sink.write(GREY)
    sink.close()
    assert [path.name for path in sorted(sink.path.iterdir())] == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert len(list(open_frames(sink.path))) == 3


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write to .*choose another --out"):
        FrameSink(tmp_path / "file" / "v.mp4", 25)
    (tmp_path / "v.mp4").mkdir()
    sink = FrameSink(tmp_path / "v.mp4", 25)
    with pytest.raises(UserError, match=r"cannot write .*v\.mp4"):
        sink.write(GREY)
