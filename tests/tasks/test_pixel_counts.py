"""mIoU and accuracies equal torchmetrics' and a slow count, on random and on real predictions."""

from __future__ import annotations

import numpy as np
import pytest
from small_segmentation import LABELS, small_segmentation_run

torch = pytest.importorskip("torch")
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex  # noqa: E402

from edgemim.analysis.segmentation import evaluate_segmenter  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.tasks import SegmentationTask, load_task  # noqa: E402
from edgemim.tasks.pixel_counts import PixelCounts  # noqa: E402

torch.set_num_threads(1)


def agrees_with_torchmetrics(report, pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> None:
    options = {"num_classes": classes, "ignore_index": 255}
    iou = MulticlassJaccardIndex(**options, average="none")
    miou = MulticlassJaccardIndex(**options, average="macro")
    pixel, mean = MulticlassAccuracy(**options, average="micro"), MulticlassAccuracy(**options, average="macro")
    for truth, predicted in pairs:
        for metric in (iou, miou, pixel, mean):
            metric.update(torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)))
    assert list(report.iou.values()) == pytest.approx((100 * iou.compute()).tolist(), abs=1e-3)
    assert report.miou == pytest.approx(100 * float(miou.compute()), abs=1e-3)
    assert report.pixel_accuracy == pytest.approx(100 * float(pixel.compute()), abs=1e-3)
    assert report.mean_accuracy == pytest.approx(100 * float(mean.compute()), abs=1e-3)


@pytest.mark.parametrize("classes", [2, 11])
def test_random_predictions(classes: int) -> None:
    generator = np.random.default_rng(classes)
    labels = tuple(map(str, range(classes)))
    counts, pairs = PixelCounts(labels), []
    for _ in range(5):
        truth = generator.integers(0, classes, (31, 17)).astype(np.uint8)
        predicted = np.where(generator.random(truth.shape) < 0.4, truth, generator.integers(0, classes, truth.shape))
        truth[generator.random(truth.shape) < 0.1] = 255
        pairs.append((truth, predicted.astype(np.uint8)))
        counts.add(*pairs[-1])
    agrees_with_torchmetrics(counts.report(5), pairs, classes)
    # A slow, obvious count of one class.
    both = sum(int(((t == 1) & (p == 1)).sum()) for t, p in pairs)
    either = sum(int((((t == 1) | (p == 1)) & (t != 255)).sum()) for t, p in pairs)
    assert counts.report(5).iou["1"] == pytest.approx(100 * both / either)


def test_real_predictions(tmp_path_factory: pytest.TempPathFactory) -> None:
    task = load_task(small_segmentation_run(tmp_path_factory.getbasetemp() / "small_segmentation"))
    assert isinstance(task, SegmentationTask)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    report = evaluate_segmenter(
        task.predict, task.held_out_pairs(), show=lambda image, mask, predicted: pairs.append((mask, predicted))
    )
    assert report.images == len(pairs) == 6
    agrees_with_torchmetrics(report, pairs, 3)
    assert 30 < report.miou < 100


def test_a_class_that_nobody_names_is_left_out_of_the_mean() -> None:
    counts = PixelCounts(("a", "b", "never"))
    counts.add(np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 2]], np.uint8))
    report = counts.report(1)
    assert report.iou == {"a": 50.0, "b": 50.0, "never": None}
    assert report.miou == 50.0
    counts.add(np.array([[0]], np.uint8), np.array([[2]], np.uint8))
    assert counts.report(1).iou["never"] == 0.0  # named wrongly, it counts


def test_nothing_but_ignored_pixels() -> None:
    counts = PixelCounts(LABELS)
    counts.add(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8))
    with pytest.raises(UserError, match="nothing to measure on"):
        counts.report(1)
