"""Targets against slow versions: per-patch statistics, pictures that come back, teachers that see what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_training import NORMALIZATION, GridTeacher, mask_of, pixels

from edgemim.methods.targets import FeatureTarget, PixelTarget, pixel_target
from edgemim.models.sizes import HieraConfig, VitConfig

X = NORMALIZATION.apply(pixels(2))
MASK = mask_of(2)


def test_pixels_are_normalised_per_patch() -> None:
    target = PixelTarget(8)(X, MASK)
    assert target.shape == (2, 16, PixelTarget(8).channels)
    for patch, (row, column) in ((0, (0, 0)), (6, (1, 2)), (15, (3, 3))):
        block = X[1, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].permute(1, 2, 0).numpy().astype(np.float64)
        expected = (block - block.mean()) / np.sqrt(block.var(ddof=1) + 1e-6)
        np.testing.assert_allclose(target[1, patch].numpy(), expected.ravel(), rtol=1e-4, atol=1e-5)


def test_raw_pixels_stay_as_they_are() -> None:
    raw = PixelTarget(8, normalize=False)(X, MASK)
    torch.testing.assert_close(raw[0, 5], X[0, :, 8:16, 8:16].permute(1, 2, 0).flatten())


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_prediction_paints_the_image(normalize: bool) -> None:
    target = PixelTarget(8, normalize)
    painted = target.picture(target(X, MASK), X, (4, 4))
    torch.testing.assert_close(painted, X, rtol=1e-4, atol=1e-5)


def test_a_flat_patch_gives_finite_numbers() -> None:
    flat = torch.ones(1, 3, 8, 8)
    target = PixelTarget(8)(flat, mask_of(1, tokens=1, ratio=0.0))
    assert torch.equal(target, torch.zeros_like(target))


def test_the_teacher_sees_pixels_between_0_and_1() -> None:
    teacher = GridTeacher(8, 4)
    FeatureTarget(teacher, 10, NORMALIZATION)(X, MASK)
    torch.testing.assert_close(teacher.seen, pixels(2).float() / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize("standardize", [True, False])
def test_features_are_standardised_over_the_batch_then_normed_per_token(standardize: bool) -> None:
    teacher = GridTeacher(8, 4)
    target = FeatureTarget(teacher, 10, NORMALIZATION, standardize)(X, MASK)
    raw = teacher(NORMALIZATION.undo(X)).double().numpy()
    if standardize:
        for channel in range(10):
            part = raw[:, :, channel]
            raw[:, :, channel] = (part - part.mean()) / (part.std(ddof=1) + 1e-6)
    mean, variance = raw.mean(-1, keepdims=True), raw.var(-1, keepdims=True)
    np.testing.assert_allclose(target.numpy(), (raw - mean) / np.sqrt(variance + 1e-5), rtol=1e-3, atol=1e-4)
    assert not target.requires_grad


def test_hieras_pixels_stand_channel_by_channel_and_come_back() -> None:
    size = HieraConfig(patch_stride=2, patch_kernel=3, image_size=32)
    target = pixel_target(size)
    assert target.channels_first and not pixel_target(VitConfig()).channels_first
    rows = target(X, MASK).view(2, 16, 3, 8, 8)
    other = PixelTarget(8)(X, MASK).view(2, 16, 8, 8, 3)
    torch.testing.assert_close(rows, other.permute(0, 1, 4, 2, 3))
    torch.testing.assert_close(target.picture(target(X, MASK), X, (4, 4)), X, rtol=1e-4, atol=1e-5)
