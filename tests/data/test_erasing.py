"""Random erasing against timm's own, and the law of keys: a picture's noise is its own and nobody else's."""

from __future__ import annotations

import random

import numpy as np
import pytest

from edgemim.data.erasing import Erased, erased_box
from edgemim.data.transforms import FinetuneTransform

SIZE = 48


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def test_boxes_are_timms() -> None:
    torch = pytest.importorskip("torch")
    erasing = pytest.importorskip("timm.data.random_erasing")
    theirs = erasing.RandomErasing(0.6, mode="pixel", device="cpu")
    drawn = 0
    for seed in range(300):
        random.seed(seed)
        image = torch.full((3, 40, 56), torch.inf)
        changed = torch.isfinite(theirs(image)[0]).nonzero()
        expected = None
        if len(changed):
            low, high = changed.amin(0).tolist(), changed.amax(0).tolist()
            expected = (*low, high[0] - low[0] + 1, high[1] - low[1] + 1)
        assert erased_box(40, 56, 0.6, random.Random(seed)) == expected
        drawn += expected is not None
    assert 140 < drawn < 220


def test_noise_has_imagenets_mean_and_deviation_and_the_rest_stays() -> None:
    plain, transform = FinetuneTransform(rand_augment=""), FinetuneTransform(rand_augment="", erasing=1.0)
    values = []
    for key in range(2**40, 2**40 + 60):
        before, after = plain.build(SIZE)(picture(), key), transform.build(SIZE)(picture(), key)
        changed = (before != after).any(0)
        box = erased_box(SIZE, SIZE, 1.0, random.Random(f"erase/{key}"))
        assert box is not None
        top, left, rows, columns = box
        inside = np.zeros((SIZE, SIZE), bool)
        inside[top : top + rows, left : left + columns] = True
        assert not (changed & ~inside).any()
        values.append(after[:, inside])
    noise = np.concatenate(values, axis=1) / 255
    # Cut off at 0 and 1, the deviation is a little less than 0.229, 0.224, 0.225.
    np.testing.assert_allclose(noise.mean(1), (0.485, 0.456, 0.406), atol=0.01)
    np.testing.assert_allclose(noise.std(1), (0.222, 0.217, 0.213), atol=0.01)


def test_the_key_alone_decides_and_no_global_generator_is_touched() -> None:
    transform = FinetuneTransform(erasing=0.7).build(SIZE)
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()  # pyright: ignore
    first = [transform(picture(), key) for key in range(12)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # pyright: ignore
    again = [transform(picture(), key) for key in reversed(range(12))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) == 12


@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_as_often_as_asked(probability: float) -> None:
    generator = [erased_box(SIZE, SIZE, probability, random.Random(seed)) is not None for seed in range(4000)]
    assert np.mean(generator) == pytest.approx(probability, abs=0.02)
    assert isinstance(FinetuneTransform(erasing=probability).build(SIZE), Erased) is (probability > 0)
