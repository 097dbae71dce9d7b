"""Maps to a box, against numbers worked out by hand and the published window."""

from pathlib import Path

import numpy as np
import pytest

from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.decode import Decoded, decode_maps, hann_window, to_image


def maps(grid: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.full((1, 1, grid, grid), 0.01, np.float32), np.zeros((1, 2, grid, grid)), np.zeros((1, 2, grid, grid))


@pytest.mark.parametrize("grid", [7, 16, 20])
def test_published_window(shared: Path, grid: int) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    expected = numpy_files.load_file(shared / "golden" / "ostrack_targets" / "outputs.safetensors")[f"hann_{grid}"]
    assert np.allclose(hann_window(grid), expected, rtol=1e-5, atol=1e-6)


def test_window_by_hand() -> None:
    # 0.5 (1 - cos(2πk/4)), k = 1, 2, 3
    assert np.allclose(hann_window(3), np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]))


def test_cell_offset_and_size_by_hand() -> None:
    score, size, offset = maps()
    score[0, 0, 5, 9] = 0.8
    size[0, :, 5, 9] = 0.25, 0.5
    offset[0, :, 5, 9] = 0.5, -0.25
    found = decode_maps(score, size, offset, None)
    assert found[:4] == pytest.approx((9.5 / 16, 4.75 / 16, 0.25, 0.5))
    assert found.score == pytest.approx(0.8)
    # A region of 128 pixels around (100, 60): its corner is (36, -4).
    box = to_image(found, Box(84, 44, 32, 32), 128.0)
    assert box == pytest.approx((36 + 76 - 16, -4 + 38 - 32, 32, 64))


def test_a_size_rate_goes_a_part_of_the_way_as_sure_as_the_score() -> None:
    found, before = Decoded(0.5, 0.5, 0.5, 0.25, 0.8), Box(10, 20, 32, 32)
    assert to_image(found, before, 128.0, 0.0) == pytest.approx(before)
    assert to_image(found, before, 128.0, 0.5) == pytest.approx((26 - 22.4, 36 - 16, 44.8, 32))  # 0.4 of 32 -> 64
    assert to_image(found, before, 128.0, 1.0) == to_image(found, before, 128.0) == pytest.approx((-6, 20, 64, 32))


def test_the_window_chooses_and_the_score_is_that_before_it() -> None:
    score, size, offset = maps()
    score[0, 0, 0, 0], score[0, 0, 8, 8] = 0.9, 0.5
    assert decode_maps(score, size, offset, None).centre_x == 0
    found = decode_maps(score, size, offset, hann_window(16))
    assert (found.centre_x, found.centre_y) == (0.5, 0.5)
    assert found.score == pytest.approx(0.9)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_map_that_is_no_number_has_no_score(wrong: float) -> None:
    score, size, offset = maps()
    score[0, 0, 3, 3] = wrong
    found = decode_maps(score, size, offset, hann_window(16))
    assert found.score == 0 and not np.isfinite(found.width)
