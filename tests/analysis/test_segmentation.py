"""A folder is labelled and counted: images that cannot be read are named, a share is spread, the baseline is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_segmentation import LABELS, write_pairs

pytest.importorskip("torch")

from edgemim.analysis.segmentation import evaluate_segmenter, majority_baseline
from edgemim.data.segmentation.folder import open_held_out
from edgemim.errors import UserError


def test_the_most_frequent_class() -> None:
    found = majority_baseline(np.array([5, 90, 5]), np.array([10, 30, 60]), LABELS)
    assert found == {"class": "middle", "miou": pytest.approx(10.0), "pixel_accuracy": pytest.approx(30.0)}


def test_unreadable_images_are_named_and_a_share_is_spread(tmp_path: Path) -> None:
    write_pairs(tmp_path, 6, seed=7)
    (tmp_path / "classes.txt").write_text("\n".join(LABELS))
    folder = open_held_out(tmp_path, LABELS)
    folder.path(2).write_bytes(b"no picture")

    def first_class(image: np.ndarray) -> np.ndarray:
        return np.zeros(image.shape[:2], np.uint8)

    report = evaluate_segmenter(first_class, folder)
    assert (report.images, [path for path, _ in report.skipped]) == (5, [str(folder.path(2))])
    seen: list[int] = []
    evaluate_segmenter(first_class, folder, limit=2, show=lambda *_: seen.append(1))
    assert len(seen) == 2
    for i in range(len(folder)):
        folder.path(i).write_bytes(b"")
    with pytest.raises(UserError, match=r"no image in .* could be read"):
        evaluate_segmenter(first_class, folder)
