"""A run in PyTorch drives the same loop as an artifact: the model's own maps, eliminated tokens included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgemim.edge.tracking.boxes import Box  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.export.tracker_session import TrackerSession, open_torch_tracker  # noqa: E402
from edgemim.models.one_stream import OneStreamTracker  # noqa: E402
from edgemim.models.sizes import VitConfig  # noqa: E402
from edgemim.models.tracker_sizes import TrackerForm  # noqa: E402
from edgemim.models.weights import save_model  # noqa: E402
from edgemim.tasks.tracking import TrackingTask, tracker_preprocessing  # noqa: E402

ENCODER = VitConfig(width=16, depth=4, heads=2, patch_size=8, image_size=32)


def small_task(**options: object) -> TrackingTask:
    """A random tracker of 32 / 64 pixels."""
    form = TrackerForm.model_validate({"template_size": 32, "search_size": 64, "head_width": 8, **options})
    torch.manual_seed(0)
    size = form.on(ENCODER)
    return TrackingTask(OneStreamTracker(size), tracker_preprocessing(size))


@pytest.mark.parametrize("options", [{"keep": (0.5,)}, {"elimination": False}, {"attention": "cached"}])
def test_maps_are_the_models(options: dict[str, object]) -> None:
    task = small_task(**options)
    session = TrackerSession(task, threads=1)
    generator = np.random.default_rng(0)
    crops = {
        "template": generator.standard_normal((1, 3, 32, 32)).astype(np.float32),
        "search": generator.standard_normal((1, 3, 64, 64)).astype(np.float32),
    }
    maps = session.run(crops)
    with torch.no_grad():
        expected = task.model.eval()(torch.from_numpy(crops["template"]), torch.from_numpy(crops["search"]))
    for name in ("score", "size", "offset"):
        np.testing.assert_array_equal(maps[name], getattr(expected, name).numpy())
    with pytest.raises(UserError):
        session.run({"template": crops["template"]})


@pytest.mark.parametrize("attention", ["joint", "cached"])
def test_a_run_is_opened_as_a_tracker(tmp_path: Path, attention: str) -> None:
    task = small_task(attention=attention)
    save_model(tmp_path / "model", task.model.state_dict(), task.facts())
    tracker = open_torch_tracker(tmp_path, threads=1)
    image = np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8)
    tracker.init(image, Box(40, 30, 20, 25))
    found = tracker.update(image)
    assert tracker.session.runtime == "pytorch" and 0 < found.score < 1
    assert 0 <= found.box.left <= 120 and found.box.width >= 10


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(UserError, match="ranked by the template's box"):
        TrackerSession(small_task(ranked_by="box"), threads=1)
