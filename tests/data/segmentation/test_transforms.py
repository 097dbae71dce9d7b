"""Crops keep image and mask together at every scale, and nothing but the key decides about them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image
from small_segmentation import brightness_classes

from edgemim.data.segmentation.transforms import SegmentationTransform, shift_colours

GEOMETRY = {"photometric": False}


def coded(height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is the column and green the row, and a mask that says the same in blocks of ten."""
    row, column = np.mgrid[:height, :width]
    image = np.stack([column, row, np.zeros_like(row)], axis=2).astype(np.uint8)
    return image, (column // 10 + 12 * (row // 10)).astype(np.uint8)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.0])
def test_each_pixel_keeps_its_class(scale: float) -> None:
    image, mask = coded()
    transform = SegmentationTransform(scale=(scale, scale), largest_share=1, **GEOMETRY).build(64, 90)
    for key in range(20):
        pixels, labels = transform(image, mask, key)
        assert pixels.shape == (3, 64, 64) and labels.shape == (64, 64)
        known = labels != 255
        said = (pixels[0] // 10 + 12 * (pixels[1].astype(int) // 10))[known]
        # At a block's border interpolation may fall into the neighbour.
        assert (said == labels[known]).mean() > 0.75
        assert known.mean() == pytest.approx(min(1, 90 * scale / 64) * min(1, 120 * scale / 64), abs=0.03)
        assert (np.array([124, 116, 104]) == pixels[:, ~known].T).all()


def test_the_key_alone_decides() -> None:
    image, mask = coded()
    transform = SegmentationTransform().build(48, 90)
    state = random.getstate()
    first = [transform(image, mask, key) for key in range(6)]
    again = [transform(image, mask, key) for key in range(6)]
    assert random.getstate() == state
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert (a == c).all() and (b == d).all()
    assert len({labels.tobytes() for _, labels in first}) == 6


def test_mirrored_half_of_the_time_and_both_together() -> None:
    image, mask = coded()
    transform = SegmentationTransform(scale=(1, 1), largest_share=1, **GEOMETRY).build(64, 90)
    turned = [transform(image, mask, key)[0][0, 0, 0] > transform(image, mask, key)[0][0, 0, -1] for key in range(200)]
    assert 70 < sum(turned) < 130
    still = SegmentationTransform(scale=(1, 1), largest_share=1, flip=False, **GEOMETRY).build(64, 90)
    assert all(still(image, mask, key)[0][0, 0, 0] < still(image, mask, key)[0][0, 0, -1] for key in range(50))


def test_crops_of_one_class_are_drawn_again() -> None:
    """A mask with one small object: with the limit, far more crops show it."""
    image, mask = np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200), np.uint8)
    mask[10:60, 10:60] = 1

    def shown(limit: float) -> int:
        transform = SegmentationTransform(scale=(1, 1), largest_share=limit, **GEOMETRY).build(48, 200)
        return sum(bool((transform(image, mask, key)[1] == 1).any()) for key in range(60))

    assert shown(0.9) > 1.5 * shown(1)


def test_colours_shift_within_bounds_and_by_chance() -> None:
    data = pytest.importorskip("skimage.data")
    photo = data.astronaut()[:128, :128]
    shifted = [shift_colours(photo, random.Random(key)) for key in range(40)]
    assert all(picture.shape == photo.shape and picture.dtype == np.uint8 for picture in shifted)
    assert sum((picture == photo).all() for picture in shifted) < 10
    changes = [abs(float(picture.mean()) - float(photo.mean())) for picture in shifted]
    assert 5 < max(changes) < 110


def test_hue_goes_round() -> None:
    """A shift of hue leaves grey alone and keeps every picture's brightness order roughly as it was."""
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    mask = brightness_classes(Image.fromarray(grey))
    assert set(np.unique(mask)) <= {0, 1, 2, 255}
    for key in range(30):
        found = shift_colours(grey, random.Random(key))
        assert np.abs(found.max(2).astype(int) - found.min(2)).max() <= 2


def test_scales_are_checked() -> None:
    with pytest.raises(ValueError, match="smallest <= largest"):
        SegmentationTransform(scale=(2.0, 0.5))
