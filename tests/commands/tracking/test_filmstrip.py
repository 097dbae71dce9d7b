"""The picture of a sequence shows its frames in order, with every box where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edgemim.commands.tracking.filmstrip import filmstrip, save_filmstrips
from edgemim.edge.tracking.sequences import Sequence, make_sequence


def sequence(folder: Path, frames: int = 9) -> Sequence:
    """Frames of 160×80, each of its own grey; a box that moves right, absent in the last frame."""
    folder.mkdir(parents=True)
    paths = []
    for i in range(frames):
        paths.append(folder / f"{i:03d}.png")
        Image.new("RGB", (160, 80), (10 * i, 10 * i, 10 * i)).save(paths[-1])
    boxes = np.array([[10.0 + 5 * i, 20, 30, 40] for i in range(frames)])
    return make_sequence("moving", folder / "gt.txt", boxes, tuple(paths), absent=np.arange(frames) == frames - 1)


def test_first_to_last_with_boxes(tmp_path: Path) -> None:
    truth = sequence(tmp_path / "a")
    found = truth.boxes + np.array([20.0, 0, 0, 0])
    picture = filmstrip(truth, {"ours": found}, 3, columns=2)
    assert picture.shape == (2 * (160 + 4) + 20, 2 * (320 + 4) - 4, 3)  # cells are 320 wide
    middle = picture[:160, 324:644]
    assert (middle[150, 310] == 40).all()  # frame 5 of 9
    left = round(2 * truth.boxes[4, 0])
    assert (middle[80, left] == 255).all()  # the annotation is white
    right = round(2 * (found[4, 0] + found[4, 2]))
    assert middle[80, right].tolist() == [230, 159, 0]


def test_odd_boxes_and_frames_do_not_stop_it(tmp_path: Path) -> None:
    truth = sequence(tmp_path / "a", frames=4)
    truth.boxes[1] = np.nan
    truth.frames[2].write_text("broken")
    short = np.array([[0.0, 0, 0, 0], [-50, -50, 500, 500]])
    picture = filmstrip(truth, {"short": short, "none": np.zeros((0, 4))}, 20)
    assert picture.shape[1] == 4 * 324 - 4  # never more than there are frames
    paths = save_filmstrips(tmp_path / "out", [truth], {"short": {"moving": short}, "other": {}}, 4)
    assert np.asarray(Image.open(paths["moving"])).shape == picture.shape
