"""What INT8 lost is counted right, on classes and on pixels, against counts by hand and torchmetrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_segmentation import LABELS, small_segmentation_run, write_pairs

torch = pytest.importorskip("torch")
from torchmetrics.classification import MulticlassJaccardIndex  # noqa: E402

from edgemim.data.segmentation.folder import open_held_out  # noqa: E402
from edgemim.edge.segmentation import label_pixels  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.tasks import SegmentationTask, load_task  # noqa: E402
from edgemim.tasks.comparison import compare_classes, compare_pixels  # noqa: E402

torch.set_num_threads(1)

ROWS = [[2, 0, 0], [0, 2, 0], [0, 0, 2], [3, 0, 4]]
INDICES = np.arange(4, dtype=np.float32)[:, None]


def table(rows: list[list[int]]) -> Callable[[np.ndarray], np.ndarray]:
    """A model that answers with the rows of a table."""
    return lambda images: np.asarray(rows, np.float32)[images[:, 0].astype(int)]


def test_counts_by_hand() -> None:
    int8 = [[2, 0, 0], [0, 2, 0], [0, 2, 0], [4, 0, 3]]  # the third and fourth answers differ
    labels = np.array([0, 1, 2, 0])
    found = compare_classes(table(ROWS), table(int8), [(INDICES[:3], labels[:3]), (INDICES[3:], labels[3:])])
    assert (found.images, found.labelled) == (4, 4)
    assert found.score_fp32 == 75
    assert found.score_int8 == 75
    assert found.drop_points == 0
    assert (found.metric, found.answers) == ("top-1", "images")
    assert found.agreement == 50
    assert found.cosine == pytest.approx((1 + 1 + 0 + 24 / 25) / 4)
    assert found.cosine_worst == pytest.approx(0)


def test_images_without_labels_count_for_agreement_alone() -> None:
    int8 = [[2, 0, 0], [2, 0, 0], [0, 0, 2], [3, 0, 4]]
    found = compare_classes(table(ROWS), table(int8), [(INDICES, np.array([0, 1, -1, -1]))])
    assert (found.images, found.labelled) == (4, 2)
    assert (found.score_fp32, found.score_int8, found.drop_points) == (100, 50, 50)
    assert found.agreement == 75
    unlabelled = compare_classes(table(ROWS), table(ROWS), [(INDICES, np.full(4, -1))])
    assert unlabelled.drop_points is None
    with pytest.raises(UserError, match="no held-out images"):
        compare_classes(table(ROWS), table(ROWS), [])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SegmentationTask:
    found = load_task(small_segmentation_run(tmp_path_factory.getbasetemp() / "small_segmentation"))
    assert isinstance(found, SegmentationTask)
    return found


def model_of(task: SegmentationTask) -> Callable[[np.ndarray], np.ndarray]:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return task.export_module()(torch.from_numpy(images)).numpy()

    return run


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_pixels_against_torchmetrics(task: SegmentationTask, mode: str) -> None:
    """A model beside one whose logits of the first class are raised: mIoU of both, equal pixels, cosine of the logits."""
    inference, folder, exact = task.inference.model_copy(update={"mode": mode}), task.held_out_pairs(), model_of(task)
    shift = np.array([0.8, 0, 0], np.float32)[:, None, None]

    def shifted(images: np.ndarray) -> np.ndarray:
        return exact(images) + shift

    found = compare_pixels(exact, shifted, folder, task.preprocessing, inference)
    metrics = [MulticlassJaccardIndex(3, average="macro", ignore_index=255) for _ in range(2)]
    same, pixels = 0, 0
    for i in range(len(folder)):
        image, mask = folder.read(i)
        masks = [label_pixels(image, model, task.preprocessing, inference) for model in (exact, shifted)]
        for metric, named in zip(metrics, masks, strict=True):
            metric.update(torch.from_numpy(named.astype(np.int64)), torch.from_numpy(mask.astype(np.int64)))
        same, pixels = same + int((masks[0] == masks[1]).sum()), pixels + mask.size
    assert (found.metric, found.answers, found.images, found.labelled) == ("mIoU", "pixels", 6, 6)
    assert found.score_fp32 == pytest.approx(100 * float(metrics[0].compute()), abs=1e-3)
    assert found.score_int8 == pytest.approx(100 * float(metrics[1].compute()), abs=1e-3)
    assert found.drop_points == pytest.approx(found.score_fp32 - found.score_int8)
    assert found.agreement == pytest.approx(100 * same / pixels) and found.agreement < 99
    assert found.cosine_worst <= found.cosine < 0.999
    equal = compare_pixels(exact, exact, folder, task.preprocessing, inference)
    assert (equal.drop_points, equal.agreement) == (0, 100)
    assert equal.cosine == pytest.approx(1)


def test_pixels_that_are_no_numbers_cannot_pass(task: SegmentationTask) -> None:
    def broken(images: np.ndarray) -> np.ndarray:
        return np.full((len(images), 3, 32, 32), np.nan, np.float32)

    found = compare_pixels(model_of(task), broken, task.held_out_pairs(), task.preprocessing, task.inference)
    assert not found.cosine >= task.limits.min_cosine


def test_masks_without_a_class_leave_no_score(task: SegmentationTask, tmp_path: Path) -> None:
    write_pairs(tmp_path, 3, seed=5)
    (tmp_path / "classes.txt").write_text("\n".join(LABELS))
    from PIL import Image

    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((80, 96), 255, np.uint8)).save(path)
    folder, model = open_held_out(tmp_path, LABELS), model_of(task)
    found = compare_pixels(model, model, folder, task.preprocessing, task.inference)
    assert (found.labelled, found.score_fp32, found.drop_points, found.agreement) == (0, None, None, 100)
    for i in range(3):
        folder.path(i).write_bytes(b"no picture")
    with pytest.raises(UserError, match="no held-out images"):
        compare_pixels(model, model, folder, task.preprocessing, task.inference)
