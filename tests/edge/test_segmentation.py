"""Every pixel of an image of any size gets a class; windows cover all of it, without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgemim.edge.images import IMAGENET_MEAN, IMAGENET_STD, ImageError, Preprocessing
from edgemim.edge.segmentation import (
    SegmentationInference,
    label_pixels,
    largest,
    resize_image,
    slide_logits,
    window_starts,
)

SQUARE = Preprocessing(image_size=32, crop_pct=1.0, interpolation="bilinear")


def test_windows_cover_and_end_at_the_border() -> None:
    for length in (32, 33, 47, 64, 100):
        for stride in (7, 21, 32):
            starts = window_starts(length, 32, stride)
            covered = np.zeros(length, bool)
            for start in starts:
                covered[start : start + 32] = True
            assert covered.all()
            assert starts[0] == 0 and starts[-1] == length - 32
            assert len(starts) == max(length - 32 + stride - 1, 0) // stride + 1
    assert window_starts(112, 96, 64) == [0, 16]


def brightness(images: np.ndarray) -> np.ndarray:
    """A model of three classes whose logits are known: how near a pixel's red is to 0, one half and 1."""
    red = images[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    return np.stack([-np.abs(red - level) for level in (0.0, 0.5, 1.0)], axis=1).astype(np.float32)


def photo() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()[:200, :300]


def test_a_model_of_single_pixels_does_not_depend_on_the_windows() -> None:
    image = resize_image(photo(), 60, 90)
    expected = brightness(SQUARE.normalise(image)[None])[0]
    for stride in (5, 20, 32):
        np.testing.assert_allclose(slide_logits(image, brightness, SQUARE, stride), expected, atol=1e-6)


def test_overlapping_windows_are_averaged() -> None:
    """Each call answers with its own number; a pixel seen by several windows gets their mean."""
    calls: list[int] = []

    def numbered(images: np.ndarray) -> np.ndarray:
        calls.append(len(calls))
        return np.full((1, 1, 32, 32), calls[-1], np.float32)

    found = slide_logits(np.zeros((32, 48, 3), np.uint8), numbered, SQUARE, 16)[0]
    assert (found[:, :16] == 0).all() and (found[:, 16:32] == 0.5).all() and (found[:, 32:] == 1).all()


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_labels_have_the_images_size_and_nearly_its_classes(mode: str) -> None:
    image = photo()
    inference = SegmentationInference.model_validate({"mode": mode, "short_side": 96, "stride": 24})
    found = label_pixels(image, brightness, SQUARE, inference)
    assert found.shape == image.shape[:2] and found.dtype == np.uint8
    exact = brightness(SQUARE.normalise(image)[None])[0].argmax(0)
    # The image is reduced before it is labelled, in whole mode to 32 x 32.
    assert (found == exact).mean() > (0.9 if mode == "slide" else 0.75)


def test_the_largest_logit_counts_after_resizing_as_torch_does_it() -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(40, 12, 17)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], (31, 29), mode="bilinear")[0].argmax(0)
    assert (largest(logits, 31, 29) == expected.numpy()).mean() > 0.999


def test_sizes_that_leave_pixels_out_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stride 40 is above the model's square of 32"):
        SegmentationInference(short_side=64, stride=40).fits(32)
    with pytest.raises(ValueError, match=r"short_side 16 is below the model's square of 32"):
        SegmentationInference(short_side=16, stride=8).fits(32)
    SegmentationInference(mode="whole", short_side=16, stride=40).fits(32)


def test_an_extreme_shape_is_refused_before_memory_is_taken() -> None:
    inference = SegmentationInference(short_side=512, stride=341)
    assert inference.working_size(300, 400, 512) == (512, 683)
    with pytest.raises(ImageError, match="too long"):
        label_pixels(np.zeros((1, 60000, 3), np.uint8), brightness, SQUARE, inference)


def test_it_needs_no_torch() -> None:
    program = "import sys, edgemim.edge.segmentation, edgemim.edge.overlay; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
