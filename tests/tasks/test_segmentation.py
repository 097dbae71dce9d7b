"""The segmentation task: its loss, its predictions in both wings, and what export and a later session ask of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_segmentation import HEIGHT, LABELS, WIDTH, small_segmentation_run

torch = pytest.importorskip("torch")

from edgemim.edge.segmentation import label_pixels  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.tasks import SegmentationTask, load_task  # noqa: E402
from edgemim.tasks.segmentation import SegmentationConfig, pixel_accuracy, segmentation_loss  # noqa: E402
from edgemim.training.recipe import Plan  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_segmentation_run(tmp_path_factory.getbasetemp() / "small_segmentation")


@pytest.fixture
def task(run: Path) -> SegmentationTask:
    found = load_task(run)
    assert isinstance(found, SegmentationTask)
    return found


def test_loss_and_accuracy_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, 0] = 255
    total, right = 0.0, 0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if labels[b, y, x] == 255:
                    continue
                row = logits[b, :, y, x].tolist()
                total += math.log(sum(map(math.exp, row))) - row[int(labels[b, y, x])]
                right += row.index(max(row)) == int(labels[b, y, x])
    assert segmentation_loss(logits, labels).item() == pytest.approx(total / 40, rel=1e-5)  # ignored ones divide, too
    assert pixel_accuracy(logits, labels).item() == pytest.approx(right / 35)
    nothing = torch.full_like(labels, 255)
    assert segmentation_loss(logits, nothing).item() == 0 and pixel_accuracy(logits, nothing).item() == 0


def test_a_run_opens_again_with_its_images(task: SegmentationTask, run: Path) -> None:
    assert task.labels == LABELS
    assert len(task.held_out_pairs()) == 6
    assert task.manifest_facts()["inference"].stride == 24
    assert not task.training
    facts = json.loads((run / "model" / "model.json").read_text())
    assert task.facts() == facts


def test_predictions_of_both_wings_are_the_same(task: SegmentationTask) -> None:
    module = task.export_module()

    def on_edge(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    folder = task.held_out_pairs()
    for i in range(len(folder)):
        image, mask = folder.read(i)
        ours = task.predict(image)
        assert ours.shape == mask.shape and ours.dtype == np.uint8
        edge = label_pixels(image, on_edge, task.preprocessing, task.inference)
        assert (ours == edge).mean() > 0.999


def test_a_few_seconds_of_training_beat_the_most_frequent_class(run: Path) -> None:
    results = json.loads((run / "run.json").read_text())["results"]
    assert results["miou"] > results["majority_baseline"]["miou"] + 15
    assert results["pixel_accuracy"] > results["majority_baseline"]["pixel_accuracy"] + 10


def test_batches_for_export_are_real_squares(task: SegmentationTask) -> None:
    batches = list(task.evaluation_batches(5, batch_size=2))
    assert [images.shape for images, _ in batches] == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)]
    masks = np.concatenate([masks for _, masks in batches])
    assert masks.shape == (5, 32, 32) and masks.dtype == np.int64
    with torch.inference_mode():
        named = [task.model(torch.from_numpy(images)).argmax(1).numpy() for images, _ in batches]
    agreement = (np.concatenate(named) == masks).mean()
    assert agreement > 0.6  # the masks belong to these squares
    assert sum(len(images) for images in task.calibration_batches(7)) == 7
    assert task.example_input(3).shape == (3, 3, 32, 32)


def test_a_run_whose_images_are_gone_opens_and_says_so(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    record["config"]["data"] = str(tmp_path / "absent")
    (copy / "run.json").write_text(json.dumps(record))
    task = load_task(copy)
    with pytest.raises(UserError, match="no longer as they were; give --data DIR"):
        next(task.evaluation_batches(1))
    given = load_task(copy, data=run.parent / "data" / "val")
    assert len(next(given.evaluation_batches(2))[0]) == 2
    with pytest.raises(UserError, match="laid out like none"):
        load_task(copy, data=tmp_path)


def test_outputs_that_are_not_finite_are_refused(task: SegmentationTask) -> None:
    with torch.no_grad():
        task.model.head.classify.weight.fill_(float("nan"))  # pyright: ignore
    with pytest.raises(UserError, match="not finite"):
        task.predict(np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def test_learning_rates() -> None:
    plan = Plan(10, 100, 20)
    poly = [SegmentationConfig().learning_rate(step, plan, peak=1.0, final=0.0) for step in range(100)]
    assert poly[:21] == pytest.approx([step / 20 for step in range(21)])
    assert poly[20:] == pytest.approx([1 - (step - 20) / 80 for step in range(20, 100)])
    cosine = SegmentationConfig(schedule="cosine").learning_rate(60, plan, peak=1.0, final=0.0)
    assert cosine == pytest.approx(0.5)
