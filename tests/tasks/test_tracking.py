"""The tracking task: its loss is the sum of its parts, it learns, and its facts build it again."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from edgemim.edge.tracking.inference import TrackingInference  # noqa: E402
from edgemim.models.one_stream import OneStreamTracker  # noqa: E402
from edgemim.models.tracker_sizes import TRACKER_SIZES  # noqa: E402
from edgemim.tasks.tracking import (  # noqa: E402
    TrackingConfig,
    TrackingTask,
    TrackingTraining,
    build_tracking_task,
    inference_of,
    tracker_preprocessing,
)
from edgemim.tasks.tracking_losses import tracking_losses  # noqa: E402
from edgemim.training.recipe import Plan  # noqa: E402

SIZE = TRACKER_SIZES["vit_nano"]
Labels = tuple[Tensor, Tensor, Tensor]


def built(name: str = "vit_nano", **settings: float) -> TrackingTask:
    torch.manual_seed(0)
    size = TRACKER_SIZES[name]
    return TrackingTask(OneStreamTracker(size), tracker_preprocessing(size), settings=TrackingTraining(**settings))


def squares(batch: int, seed: int = 0) -> tuple[Tensor, Labels]:
    """Bright squares on dark noise: uint8 search regions; templates and both boxes."""
    generator = torch.Generator().manual_seed(seed)
    template = torch.randint(0, 60, (batch, 3, 32, 32), generator=generator, dtype=torch.uint8)
    search = torch.randint(0, 60, (batch, 3, 64, 64), generator=generator, dtype=torch.uint8)
    template[:, :, 8:24, 8:24] = 220
    corners = torch.randint(0, 48, (batch, 2), generator=generator)
    for image, (x, y) in zip(search, corners.tolist(), strict=True):
        image[:, y : y + 16, x : x + 16] = 220
    boxes = torch.cat([corners / 64, torch.full((batch, 2), 0.25)], dim=1)
    return search, (template, torch.tensor([[0.25, 0.25, 0.5, 0.5]] * batch), boxes)


def test_the_loss_is_the_weighted_sum() -> None:
    task = built(focal_weight=1.0, giou_weight=2.0, l1_weight=5.0).eval()
    search, labels = squares(3)
    output = task(search, torch.zeros(3), labels)
    crops = (task.normalization.apply(labels[0]), task.normalization.apply(search))
    parts = tracking_losses(task.model(*crops), labels[2])
    assert float(output.loss.detach()) == pytest.approx(
        float((parts.focal + 2 * parts.giou + 5 * parts.l1).detach()), rel=1e-6
    )
    assert set(output.metrics) == {"train_mean_iou", "focal", "giou", "l1"}
    assert not any(value.requires_grad for value in output.metrics.values())


def test_pixels_as_bytes_or_as_shares() -> None:
    task = built().eval()
    search, (template, box, true) = squares(2)
    first = task(search, torch.zeros(2), (template, box, true)).loss
    second = task(search / 255, torch.zeros(2), (template / 255, box, true)).loss
    assert float(first.detach()) == pytest.approx(float(second.detach()), rel=1e-6)


@pytest.mark.parametrize("name", ["vit_nano", "vit_nano_cached"])
def test_it_learns_to_find_squares(name: str) -> None:
    task = built(name).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    for step in range(60):
        search, labels = squares(16, seed=step)
        output = task(search, torch.zeros(16), labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    search, (template, box, true) = squares(32, seed=999)
    found = task.eval().predict(template, search, box)
    centres, middles = found[:, :2] + found[:, 2:] / 2, true[:, :2] + true[:, 2:] / 2
    inside = ((centres - middles).abs() < 0.125).all(1)  # anywhere in the square; by chance one in ten
    assert float(inside.float().mean()) > 0.8


def test_the_kept_share_follows_the_run_in_training_alone() -> None:
    task = built(elimination_start=0.2, elimination_end=0.6)
    seen = []
    run = task.model.forward

    def forward(*arguments: Tensor, keep_rate: float | None = None, **options: Tensor) -> object:
        seen.append(keep_rate)
        return run(*arguments, keep_rate=keep_rate, **options)

    task.model.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    search, labels = squares(2)
    for progress in (0.0, 0.2, 0.4, 0.6, 0.9):
        task.begin_step(progress)
        task(search, torch.zeros(2), labels)
    task.eval()(search, torch.zeros(2), labels)
    assert seen == [1.0, 1.0, pytest.approx(0.85), 0.7, 0.7, None]


def test_facts_build_it_again() -> None:
    task = built()
    task.inference = TrackingInference(form="joint", template_size=32, search_size=64, margin_px=4)
    again = build_tracking_task(task.facts(), task.preprocessing)
    assert again.model.size == SIZE and again.inference == task.inference
    again.model.load_state_dict(task.model.state_dict())
    search, (template, box, _) = squares(2)
    assert torch.equal(again.eval().predict(template, search, box), task.eval().predict(template, search, box))


def test_how_it_is_laid_over_a_video_follows_from_its_size() -> None:
    for name, size in TRACKER_SIZES.items():
        inference, preprocessing = inference_of(size), tracker_preprocessing(size)
        assert (inference.form == "cached") == ("cached" in name)
        inputs: dict[str, tuple[int | None, ...]] = {
            "template": (1, 3, size.template_size, size.template_size),
            "search": (1, 3, size.search_size, size.search_size),
        }
        inference.fits(preprocessing.image_size, inputs, TrackingTask.output_names, ())


def test_the_published_rate_falls_once() -> None:
    config, plan = TrackingConfig(), Plan(total_steps=1000, warmup_steps=10, steps_per_epoch=100)
    rates = [config.learning_rate(step, plan, peak=1.0, final=0.0) for step in range(1000)]
    assert rates[0] == 0 and rates[5] == 0.5 and set(rates[10:800]) == {1.0} and set(rates[800:]) == {0.1}
    smooth = TrackingConfig(schedule="cosine")
    assert smooth.learning_rate(505, plan, peak=1.0, final=0.0) == pytest.approx(0.5)


def test_elimination_cannot_end_before_it_begins() -> None:
    with pytest.raises(ValueError, match="lies before"):
        TrackingTraining(elimination_start=0.5, elimination_end=0.2)
