import numpy as np
import pytest
from pathlib import Path
from tiny_tracker import moving_target, tiny_tracker
from edgemim.edge.tracking.boxes import Box, iou
from edgemim.edge.tracking.tracker import Tracker


@pytest.mark.parametrize("form", ["joint", "cached"])
def test_follows(form, tmp_path: Path) -> None:
    artifact = tiny_tracker(tmp_path / "a", form)
    tracker = Tracker.open(artifact.folder, threads=1)
    images, boxes = moving_target(60)
    tracker.init(images[0], boxes[0])
    found = [tracker.update(image) for image in images[1:]]
    overlaps = iou(np.array([one.box for one in found]), np.array(boxes[1:]))
    print(overlaps.min(), overlaps.mean(), min(o.score for o in found), found[-1])
    assert overlaps.min() > 0.5
