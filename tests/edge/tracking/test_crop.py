"""Square crops: the published ones to one level, borders black, a huge square without its memory."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemim.edge.images import Preprocessing
from edgemim.edge.tracking import crop as crop_module
from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.crop import Normaliser, crop_square, padding_mask


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(3).integers(1, 256, (height, width, 3)).astype(np.uint8)


def test_published_crops_and_masks(shared: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    folder = shared / "golden" / "ostrack_targets"
    given = numpy_files.load_file(folder / "inputs.safetensors")
    expected = numpy_files.load_file(folder / "outputs.safetensors")
    image = given["image_uint8_hwc"]
    names = sorted(name for name in expected if name.startswith("crop") and "." not in name)
    assert len(names) == 8
    for name in names:
        box = Box.of(given["crop_boxes_xywh"][int(name[4])])
        factor, size = {"t": (2.0, 64), "s": (4.0, 128)}[name[5]]
        found = crop_square(image, box, factor, size)
        assert np.abs(found.pixels.astype(int) - expected[name].astype(int)).max() <= 1, name
        assert found.resize_factor == pytest.approx(float(expected[name + ".resize_factor"]), rel=1e-6), name
        assert np.array_equal(padding_mask(found, *image.shape[:2]), expected[name + ".padmask"]), name


def test_without_resizing_it_is_a_slice() -> None:
    """A square of 4 · sqrt(64) = 32 pixels around the middle of the box, pixel for pixel."""
    image = picture()
    found = crop_square(image, Box(36, 26, 8, 8), 4.0, 32)
    assert (found.left, found.top, found.side, found.resize_factor) == (24, 14, 32, 1.0)
    assert np.array_equal(found.pixels, image[14:46, 24:56])


def test_outside_the_image_is_black() -> None:
    image = picture()
    found = crop_square(image, Box(-4, -4, 8, 8), 4.0, 32)
    corner = crop_square(image, Box(76, 56, 8, 8), 4.0, 32)
    # As published, the last row and column are lost to a square that reaches beyond them.
    assert np.array_equal(corner.pixels[:15, :15], image[44:59, 64:79])
    assert not corner.pixels[15:].any() and not corner.pixels[:, 15:].any()
    kept = crop_square(image, Box(76, 56, 8, 8), 4.0, 32, whole=True)
    assert np.array_equal(kept.pixels[:16, :16], image[44:60, 64:80])
    assert np.array_equal(found.pixels[16:, 16:], image[:16, :16])
    assert not found.pixels[:16].any() and not found.pixels[:, :16].any()
    mask = padding_mask(found, *image.shape[:2])
    assert np.array_equal(mask, ~found.pixels.any(axis=2))
    for far in (Box(500, 10, 8, 8), Box(10, -900, 8, 8)):
        away = crop_square(image, far, 4.0, 32)
        assert not away.pixels.any()
        assert padding_mask(away, *image.shape[:2]).all()


@pytest.mark.parametrize("box", [Box(10, 10, 0, 5), Box(10, 10, 5, -1), Box(np.nan, 0, 5, 5), Box(0, 0, np.inf, 5)])
def test_a_box_without_area_is_refused(box: Box) -> None:
    with pytest.raises(ValueError, match="no area"):
        crop_square(picture(), box, 4.0, 32)


def test_a_huge_square_costs_no_memory_and_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = cv2.GaussianBlur(picture(600, 800), (0, 0), 5)
    box = Box(100, 50, 500, 400)
    exact = crop_square(smooth, box, 4.0, 128)
    monkeypatch.setattr(crop_module, "_MAX_COPIED_SIDE_PX", 100)
    sampled = crop_square(smooth, box, 4.0, 128)
    difference = np.abs(sampled.pixels.astype(int) - exact.pixels.astype(int))
    # At the image's rim the two mix black differently.
    assert difference.mean() < 0.5 and np.percentile(difference, 99) <= 4
    assert sampled[1:] == exact[1:]
    monkeypatch.undo()
    tracemalloc.start()
    crop_square(np.zeros((2000, 3000, 3), np.uint8), Box(0, 0, 3000, 2000), 4.0, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**20


def test_normaliser_gives_the_same_bits() -> None:
    preprocessing = Preprocessing(image_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    pixels = picture(32, 32)
    found = Normaliser(preprocessing)(pixels)
    assert found.shape == (1, 3, 32, 32) and found.dtype == np.float32 and found.flags.c_contiguous
    assert np.array_equal(found[0], preprocessing.normalise(pixels))
