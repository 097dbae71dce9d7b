"""The gallery keeps few images, evenly spread and small; the table shows the worst classes first."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from edgemim.commands.segmentation.results import Gallery, show_report
from edgemim.tasks.pixel_counts import PixelCounts


def test_few_images_evenly_spread_and_small() -> None:
    gallery = Gallery(100)
    for number in range(100):
        image = np.full((700, 1100, 3), number, np.uint8)
        gallery.add(image, image[..., 0], image[..., 0])
    assert [int(image[0, 0, 0]) for image, _, _ in gallery.rows] == [0, 20, 40, 59, 79, 99]
    assert all(max(mask.shape) <= 512 for _, mask, _ in gallery.rows)
    one = Gallery(1)
    one.add(np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5), np.uint8))
    assert len(one.rows) == 1 and one.rows[0][0].shape == (5, 5, 3)


def test_the_worst_class_stands_first_and_no_name_reaches_the_terminal_raw(capsys) -> None:
    counts = PixelCounts(("good", "\x1b[31mbad", "[bold]never[/bold]"))
    counts.add(np.array([[0, 0, 0, 1]], np.uint8), np.array([[0, 0, 0, 0]], np.uint8))
    show_report(counts.report(1))
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown and "[bold]never" in shown
    assert shown.index("bad") < shown.index("good") < shown.index("never")
    assert "mIoU 37.50 %" in shown
