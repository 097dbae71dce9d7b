"""Feature distillation with a real, small timm teacher on the student's grid."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NANO, NORMALIZATION, keys_of, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import LinearDecoderConfig
from edgemim.methods.feature_distill import FeatureDistillConfig
from edgemim.methods.targets import FeatureTarget, PixelTarget
from edgemim.teachers import Teacher, TimmTeacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    return TimmTeacher(model="test_resnet", pretrained=False).build(NANO.image_size, NANO.grid)


def build(teacher: Teacher | None, **options: object) -> MaskedImageModel:
    return FeatureDistillConfig.model_validate(options).build(nano_encoder(), NORMALIZATION, teacher)


def test_two_branches_with_their_weights(teacher: Teacher) -> None:
    model = build(teacher, pixel_weight=0.3, feature_weight=1.5)
    feature, pixel = model.branches
    assert isinstance(feature.target, FeatureTarget)
    assert isinstance(pixel.target, PixelTarget)
    assert (feature.weight, feature.score, feature.loss) == (1.5, "all", "smooth_l1")
    assert (pixel.weight, pixel.score, pixel.loss) == (0.3, "masked", "mse")
    output = model(pixels(4), keys_of(4), None)
    total = 1.5 * output.metrics["loss_feature"] + 0.3 * output.metrics["loss_pixel"]
    torch.testing.assert_close(output.loss.detach(), total)


def test_the_feature_loss_by_hand(teacher: Teacher) -> None:
    model = build(teacher, pixel_weight=0, feature_loss="mse")
    x, mask = NORMALIZATION.apply(pixels(4)), mask_of(4, ratio=0.5)
    features = teacher(NORMALIZATION.undo(x))
    flat = features.reshape(-1, teacher.channels)
    standard = (features - flat.mean(0)) / (flat.std(0) + 1e-6)
    wanted = (standard - standard.mean(-1, keepdim=True)) / (standard.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    prediction = model.branches[0].decoder(model.encoder(x, mask), mask)
    torch.testing.assert_close(model.loss(x, mask).loss, (prediction - wanted).square().mean(), rtol=1e-4, atol=1e-5)


def test_plain_distillation_without_masking(teacher: Teacher) -> None:
    model = build(teacher, mask_ratio=0, pixel_weight=0, feature_decoder=LinearDecoderConfig())
    assert [branch.name for branch in model.branches] == ["feature"]
    output = model(pixels(2), keys_of(2), None)
    output.loss.backward()
    assert model.encoder.vit.cls_token is not None and model.encoder.vit.cls_token.grad is not None
    assert model.reconstruct(pixels(2), keys_of(2)) is None


def test_the_teacher_stays_frozen_and_outside(teacher: Teacher) -> None:
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    model = build(teacher).train()
    model(pixels(4), keys_of(4), None).loss.backward()
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert teacher not in set(model.modules())
    teachers_own = {value.data_ptr() for value in teacher.parameters()}
    assert teachers_own.isdisjoint({value.data_ptr() for value in model.parameters()})


def test_a_missing_teacher_is_said(teacher: Teacher) -> None:
    with pytest.raises(UserError, match="needs a teacher"):
        build(None)


@pytest.mark.parametrize("options", [{}, {"pixel_weight": 0, "feature_score": "masked"}])
def test_nothing_to_score_is_refused(teacher: Teacher, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="hides nothing"):
        build(teacher, mask_ratio=0, **options)
