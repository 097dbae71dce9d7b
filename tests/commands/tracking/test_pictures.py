"""The picture of pairs: three cells a pair, the true box where it is, the brightest score where the map has it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch import Tensor  # noqa: E402
from tracking_sets import photo  # noqa: E402

from edgemim.commands.tracking.pictures import paint_pairs  # noqa: E402
from edgemim.data.tracking.pairs import PairBatch  # noqa: E402
from edgemim.models.center_head import TrackMaps  # noqa: E402
from edgemim.models.one_stream import OneStreamTracker  # noqa: E402
from edgemim.models.sizes import VitConfig  # noqa: E402
from edgemim.models.tracker_sizes import TrackerForm  # noqa: E402
from edgemim.tasks.tracking import TrackingTask, tracker_preprocessing  # noqa: E402

NANO = VitConfig(width=48, depth=1, heads=3, patch_size=8, image_size=32)


class Sure(OneStreamTracker):
    """Always certain of the cell in row 1, column 3 of 8 by 8, and of a box half as wide as the region."""

    def forward(self, template: Tensor, search: Tensor, **_: object) -> TrackMaps:
        score = torch.full((len(search), 1, 8, 8), 1e-4)
        score[:, :, 1, 3] = 1 - 1e-4
        halves = torch.full((len(search), 2, 8, 8), 0.5)
        return TrackMaps(score, halves, halves)


def test_pictures_show_boxes_and_score() -> None:
    form = TrackerForm(template_size=32, search_size=64, head_width=16)
    model = Sure(form.on(NANO))
    task = TrackingTask(model, tracker_preprocessing(model.size))
    crop = torch.from_numpy(np.ascontiguousarray(photo("coffee")[:64, :64].transpose(2, 0, 1)))
    search = crop[None].repeat(3, 1, 1, 1)
    box = torch.tensor([[0.25, 0.25, 0.5, 0.5]]).repeat(3, 1)
    numbers = torch.arange(3)
    picture = paint_pairs(task, PairBatch(search[..., :32, :32], search, box, box, numbers, numbers), columns=2)
    cell = 196
    assert picture.shape == (2 * cell, 6 * cell, 3) and picture.dtype == np.uint8
    template, shown, light = (picture[:192, start : start + 192] for start in (0, cell, 2 * cell))
    green = (template == (0, 158, 115)).all(-1)
    rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (48, 144, 48, 144)
    orange = (shown == (213, 94, 0)).all(-1)
    # Centre at ((3 + 0.5) / 8, (1 + 0.5) / 8), half as wide as the region.
    assert np.flatnonzero(orange.any(0))[0] == pytest.approx(192 * (3.5 / 8 - 0.25), abs=2)
    assert light.mean(-1)[24:48, 72:96].min() > light.mean(-1)[60:, :].max()
    assert (picture[cell:, 3 * cell :] == 255).all(), "a fourth pair is not there"
