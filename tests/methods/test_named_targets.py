"""The targets of composed methods: each is the one that the published method's own file makes, and says how it is read."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from tiny_training import NORMALIZATION, GridTeacher, mask_of, nano_encoder, pixels

from edgemim.methods.branches import LOSSES
from edgemim.methods.named_targets import (
    AttentionTargetConfig,
    FeatureTargetConfig,
    GlobalTargetConfig,
    HiddenTargetConfig,
    HogTargetConfig,
    Kit,
    LowPassTargetConfig,
    NamedTarget,
    PixelTargetConfig,
    TargetConfig,
)
from edgemim.models.sizes import VitConfig
from edgemim.teachers import MaskedTeacher

SIZE = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=32)
TARGETS: tuple[type[NamedTarget], ...] = get_args(get_args(TargetConfig)[0])


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_each_name_picks_its_target(target: type[NamedTarget]) -> None:
    table = get_args(TargetConfig)[2].table
    assert table[target().name] == target()  # pyright: ignore[reportAttributeAccessIssue]
    assert target.usual_loss in LOSSES
    assert target.__doc__


def kit(teacher: torch.nn.Module | None, *targets: NamedTarget) -> Kit:
    return Kit(SIZE, NORMALIZATION, teacher, targets)


def test_equal_configurations_are_one_target() -> None:
    made = kit(None)
    assert made.target(PixelTargetConfig()) is made.target(PixelTargetConfig())
    assert made.target(PixelTargetConfig()) is not made.target(PixelTargetConfig(normalize=False))


def test_pixels_smooth_and_not() -> None:
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    made = kit(None)
    sharp = made.target(PixelTargetConfig(normalize=False))(x, mask)
    torch.testing.assert_close(sharp[0, 1], x[0, :, :8, 8:16].permute(1, 2, 0).flatten())
    wide = made.target(LowPassTargetConfig(normalize=False, radius=100.0))(x, mask)
    torch.testing.assert_close(wide, sharp, rtol=1e-3, atol=1e-4)  # nothing is cut off
    constant = made.target(LowPassTargetConfig(normalize=False, radius=0.8))(x, mask)
    assert float(constant.std(1).mean()) < 0.5 * float(sharp.std(1).mean())


def test_bins_of_gradients() -> None:
    made = kit(None)
    assert made.target(HogTargetConfig(bins=5)).channels == 3 * 5 * 4
    assert made.target(HogTargetConfig())(NORMALIZATION.apply(pixels(2)), mask_of(2)).shape == (2, 16, 108)


def test_features_plain_normalised_and_pooled() -> None:
    teacher = GridTeacher(8, 4)
    made = kit(teacher)
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    plain = teacher(NORMALIZATION.undo(x))
    raw = made.target(FeatureTargetConfig(standardize=False, layer_norm=False))
    torch.testing.assert_close(raw(x, mask), plain)
    standard = made.target(FeatureTargetConfig(layer_norm=False))(x, mask)
    torch.testing.assert_close(standard.mean((0, 1)), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std((0, 1)), torch.ones(10), atol=1e-4, rtol=0)
    normed = made.target(FeatureTargetConfig())(x, mask)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    pooled = made.target(GlobalTargetConfig())(x, mask)
    flat = plain.reshape(-1, plain.shape[-1])
    expected = ((plain - flat.mean(0)) / flat.std(0)).mean(1, keepdim=True)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


def test_one_pass_of_the_teacher_over_all_blocks_that_are_named() -> None:
    teacher = MaskedTeacher(nano_encoder(seed=3), NORMALIZATION)
    targets = (AttentionTargetConfig(block=1), AttentionTargetConfig(), HiddenTargetConfig(block=0))
    made = kit(teacher, *targets)
    assert (made.teacher_pass.attention, made.teacher_pass.taps) == ((1, 2), (0,))
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    seen = teacher.encoder(x, mask, taps=(0,), attention=(1, 2))
    torch.testing.assert_close(made.target(targets[0])(x, mask), seen.attention[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.target(targets[1])(x, mask), seen.attention[2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.target(targets[2])(x, mask), seen.entering(0), rtol=1e-3, atol=1e-4)
