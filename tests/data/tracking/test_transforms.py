"""The jitter's statistics against the published rule, where boxes land against coloured pixels, and the edge's own crop."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tracking_sets import photo

from edgemim.data.tracking.pairs import PairCrops
from edgemim.data.tracking.transforms import PairTransform, jitter_box
from edgemim.data.views import Distortion
from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.crop import crop_square

BOX = Box(70, 50, 40, 60)
PLAIN = PairTransform(
    center_jitter=0, scale_jitter=0, grey_probability=0, flip_probability=0, crop_flip_probability=0, brightness=0
)


def marked() -> np.ndarray:
    """A photo in which the box is pure green and nothing else is."""
    image = photo("coffee")[:240, :320].copy()
    image[..., 1] = np.minimum(image[..., 1], image[..., 0])
    image[50:110, 70:110] = (0, 255, 0)
    return image


def pairs(config: PairTransform, count: int, sizes: tuple[int, int] = (64, 128)) -> list[PairCrops]:
    transform, image = config.build(sizes, (2.0, 4.0)), marked()
    found = [transform((image, BOX), (image, BOX), random.Random(seed), still=True) for seed in range(count)]
    return [crops for crops in found if crops is not None]


def test_jitter_has_the_published_statistics() -> None:
    rng = random.Random(0)
    boxes = np.array([jitter_box(BOX, 3.0, 0.25, rng) for _ in range(20_000)])
    logs = np.log(boxes[:, 2:] / BOX[2:])
    assert abs(logs.mean()) < 0.01 and logs.std(axis=0) == pytest.approx([0.25, 0.25], rel=0.03)
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.03
    shift = boxes[:, :2] + boxes[:, 2:] / 2 - [90, 80]
    share = shift / np.sqrt(boxes[:, 2:].prod(axis=1, keepdims=True))
    # Even between -1.5 and 1.5: its deviation is 3 / sqrt(12).
    assert np.abs(share).max() <= 1.5 and np.abs(share).max() > 1.49
    assert share.std(axis=0) == pytest.approx([3 / 12**0.5] * 2, rel=0.02)
    assert np.histogram(share, bins=10, range=(-1.5, 1.5))[0] / 4000 == pytest.approx(np.ones(10), abs=0.1)


def test_no_jitter_is_the_box_itself() -> None:
    assert jitter_box(BOX, 0, 0, random.Random(1)) == pytest.approx(BOX)


@pytest.mark.parametrize("size", [64, 96, 128])
def test_both_wings_cut_the_same_pixels(size: int) -> None:
    image, box = photo("astronaut"), Box(180.3, 90.7, 75.5, 110.2)
    found = PLAIN.build((size, 2 * size), (2.0, 4.0))((image, box), (image, box), random.Random(0), still=True)
    assert found is not None
    for pixels, factor in ((found.template, 2.0), (found.search, 4.0)):
        edge = crop_square(image, box, factor, pixels.shape[-1])
        assert np.array_equal(pixels, edge.pixels.transpose(2, 0, 1))


def test_the_box_lies_on_the_targets_pixels() -> None:
    config = PairTransform(brightness=0, grey_probability=0)
    seen = 0
    for crops in pairs(config, 60):
        for pixels, box in ((crops.template, crops.template_box), (crops.search, crops.search_box)):
            side = pixels.shape[-1]
            green = (pixels[1] > 200) & (pixels[0] < 60) & (pixels[2] < 60)
            rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
            left, top, width, height = box * side
            if left < 0 or top < 0 or left + width > side or top + height > side:
                continue
            seen += 1
            assert columns[0] == pytest.approx(left, abs=1.6) and columns[-1] + 1 == pytest.approx(
                left + width, abs=1.6
            )
            assert rows[0] == pytest.approx(top, abs=1.6) and rows[-1] + 1 == pytest.approx(top + height, abs=1.6)
    assert seen > 80


def test_mirroring_is_joint_and_then_each_crops_own() -> None:
    plain = pairs(PLAIN, 1)[0]
    joint = pairs(PLAIN.model_copy(update={"flip_probability": 1.0}), 1)[0]
    own = pairs(PLAIN.model_copy(update={"crop_flip_probability": 0.5}), 400)
    assert np.array_equal(joint.template, plain.template[:, :, ::-1])
    assert np.array_equal(joint.search, plain.search[:, :, ::-1])
    assert joint.search_box[0] == pytest.approx(1 - plain.search_box[0] - plain.search_box[2])
    names = ("template", "search")
    turned = [tuple(not np.array_equal(getattr(c, name), getattr(plain, name)) for name in names) for c in own]
    counts = {combination: turned.count(combination) for combination in set(turned)}
    assert len(counts) == 4 and min(counts.values()) > 60


def test_grey_and_brightness() -> None:
    grey = pairs(PLAIN.model_copy(update={"grey_probability": 1.0}), 1)[0]
    assert np.array_equal(grey.template[0], grey.template[1]) and np.array_equal(grey.search[0], grey.search[2])
    plain = pairs(PLAIN, 1)[0]
    bright = pairs(PLAIN.model_copy(update={"brightness": 0.2}), 300)
    ratios = np.array(
        [[getattr(c, n).mean() / getattr(plain, n).mean() for n in ("template", "search")] for c in bright]
    )
    assert ratios.min() > 0.79 and ratios.max() < 1.21 and ratios.std() == pytest.approx(0.4 / 12**0.5, rel=0.15)
    assert abs(np.corrcoef(ratios.T)[0, 1]) < 0.2


def test_the_same_numbers_give_the_same_crops() -> None:
    first, again = pairs(PairTransform(), 5), pairs(PairTransform(), 5)
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_still_pictures_may_be_distorted_in_the_search_region_alone() -> None:
    config = PLAIN.model_copy(update={"still_distortion": Distortion(grey_probability=1, blur_probability=0)})
    plain, changed = pairs(PLAIN, 1)[0], pairs(config, 1)[0]
    assert np.array_equal(plain.template, changed.template) and not np.array_equal(plain.search, changed.search)
    image = marked()
    moving = config.build((64, 128), (2.0, 4.0))((image, BOX), (image, BOX), random.Random(0), still=False)
    assert moving is not None and np.array_equal(moving.search, plain.search)
    assert config.without_chance().still_distortion is None


def test_a_box_far_outside_gives_nothing() -> None:
    image, outside = marked(), Box(5000, 5000, 20, 20)
    assert PLAIN.build((64, 128), (2.0, 4.0))((image, BOX), (image, outside), random.Random(0), still=True) is None
    assert PLAIN.build((64, 128), (2.0, 4.0))((image, outside), (image, BOX), random.Random(0), still=True) is None
