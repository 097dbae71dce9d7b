"""Views come from the key alone, each distorted as published; torchvision's own transforms are the reference."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from edgemim.data.transforms import PretrainTransform
from edgemim.data.views import Distorted, Distortion, Views

NOTHING = Distortion(jitter_probability=0, grey_probability=0, blur_probability=0, solarize_probability=0)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A real photograph, uint8 [h, w, 3]."""
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos: pip install 'edgemim[quickstart]'")
    return data.coffee()[100:300, 200:440]


def test_views_come_from_the_key_and_differ(picture: np.ndarray) -> None:
    views = Views(PretrainTransform().build(32), (Distortion(), Distortion()))
    first = views(picture, 2**62 + 5)
    assert first.shape == (2, 3, 32, 32) and first.dtype == np.uint8
    random.seed(3)  # no global generator takes part
    np.random.seed(3)
    assert np.array_equal(first, views(picture, 2**62 + 5))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, views(picture, 2**62 + 6))


def test_undistorted_views_are_crops_of_different_places(picture: np.ndarray) -> None:
    crop = PretrainTransform().build(32)
    crops = Views(crop, (NOTHING, NOTHING))(picture, 7)
    assert np.abs(crops[0].astype(int) - crops[1]).mean() > 5
    assert np.array_equal(Distorted(crop, NOTHING)(picture, 7), crop(picture, 7))
    greys = Distorted(crop, NOTHING.model_copy(update={"grey_probability": 1.0}))(picture, 7)
    assert np.array_equal(greys[0], greys[2])


def test_one_views_distortion_does_not_move_the_others_crop(picture: np.ndarray) -> None:
    crop = PretrainTransform().build(32)
    plain, mixed = Views(crop, (NOTHING, NOTHING))(picture, 7), Views(crop, (Distortion(), NOTHING))(picture, 7)
    assert not np.array_equal(plain[0], mixed[0])
    assert np.array_equal(plain[1], mixed[1])


def test_jitter_is_torchvisions(picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    only = NOTHING.model_copy(update={"jitter_probability": 1.0})
    for seed in range(8):
        rng = random.Random(seed)
        ours = np.asarray(only.apply(Image.fromarray(picture), rng))
        replay = random.Random(seed)
        replay.random()
        factors = [replay.uniform(1 - s, 1 + s) for s in (0.4, 0.4, 0.2)] + [replay.uniform(-0.1, 0.1)]
        order = [0, 1, 2, 3]
        replay.shuffle(order)
        monkeypatch.setattr(
            transforms.ColorJitter, "get_params", staticmethod(lambda *_, f=factors, o=order: (torch.tensor(o), *f))
        )
        theirs = transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)(Image.fromarray(picture))
        assert np.array_equal(ours, np.asarray(theirs))


def test_grey_blur_and_solarize(picture: np.ndarray) -> None:
    image = Image.fromarray(picture)

    def only(**changes: object) -> np.ndarray:
        return np.asarray(NOTHING.model_copy(update=changes).apply(image, random.Random(0)))

    assert np.array_equal(only(grey_probability=1.0), np.asarray(transforms.Grayscale(3)(image)))
    blurred = only(blur_probability=1.0, blur_sigma=(1.5, 1.5))
    assert np.array_equal(blurred, np.asarray(image.filter(ImageFilter.GaussianBlur(1.5))))
    solarized = only(solarize_probability=1.0)
    assert np.array_equal(solarized, np.where(picture < 128, picture, 255 - picture))
    assert np.array_equal(solarized, np.asarray(ImageOps.solarize(image, 128)))
    assert np.array_equal(only(), picture)


def test_a_blur_of_reversed_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="smallest <= largest"):
        Distortion(blur_sigma=(2.0, 0.1))


def test_probabilities_and_ranges() -> None:
    """How often each change happens, told from what it does to an image of one colour and an edge."""
    image = Image.fromarray(np.full((4, 4, 3), (200, 40, 90), np.uint8))
    second = Distortion(blur_probability=0.1, solarize_probability=0.2)
    seen = {"grey": 0, "solarized": 0, "as it was": 0}
    draws = 3000
    for seed in range(draws):
        calm = second.model_copy(update={"jitter_probability": 0.0})
        pixel = np.asarray(calm.apply(image, random.Random(f"{seed}")))[0, 0]
        seen["grey"] += int(pixel[0] == pixel[1] == pixel[2])
        seen["solarized"] += int(tuple(pixel) == (55, 40, 90))
        seen["as it was"] += int(
            np.array_equal(np.asarray(second.apply(image, random.Random(seed)))[0, 0], (200, 40, 90))
        )
    assert seen["grey"] / draws == pytest.approx(0.2, abs=0.03)
    assert seen["solarized"] / draws == pytest.approx(0.8 * 0.2, abs=0.03)
    # A blur does nothing to one colour: neither jittered, grey nor solarized.
    assert seen["as it was"] / draws == pytest.approx(0.2 * 0.8 * 0.8, abs=0.03)
