"""What a masked loss may not see: for every registered method on every encoder family, whatever it scores on masked
patches; and which tensors a gradient reaches.

Branches over attention, hidden states or pooled features score something else and are outside; so is MoCo-v3, which
masks nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_every_method import METHODS, configured, teacher_for
from test_resume_every_method import FAMILIES, REFUSED
from tiny_training import NORMALIZATION, keys_of, mask_of, nano_encoder, pixels

from edgemim.config import Config
from edgemim.methods import D2MaeConfig, MaeConfig, MirlConfig
from edgemim.methods.branches import LOSSES, MaskedImageModel, reduce
from edgemim.methods.mirl import PairDecoder
from edgemim.models.build import build_encoder
from edgemim.models.encoder import TokenMask
from edgemim.models.sizes import VitConfig
from edgemim.teachers import MaskedTeacher

NOT_MASKED = {"mocov3"}
MASKED = [method for method in METHODS if method.model_fields["name"].default not in NOT_MASKED]
PAIRS = [
    pytest.param(method, size, id=f"{method.__name__}-{family}")
    for method in MASKED
    for family, size in FAMILIES.items()
    if (method.model_fields["name"].default, family) not in REFUSED
]
TWELVE = VitConfig(width=24, depth=12, heads=3, patch_size=8, image_size=32)


def model_of(method: type[Config], size: Any) -> tuple[MaskedImageModel, torch.Tensor, TokenMask]:
    config = configured(method, size)
    teacher = teacher_for(config, size, {})
    torch.manual_seed(0)
    model = config.build(build_encoder(size), NORMALIZATION, teacher)
    with torch.no_grad():  # fresh weights hide much: zero biases, tables and tokens, equal norms
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model, NORMALIZATION.apply(pixels(3, size.image_size)), model.masking(keys_of(3), size.tokens)


@pytest.mark.parametrize(("method", "size"), PAIRS)
@torch.no_grad()
def test_a_target_perturbed_at_a_visible_patch_leaves_the_loss(method: type[Config], size: Any) -> None:
    model, x, mask = model_of(method, size)
    features = model.encode(x, mask)
    scored = [branch for branch in model.branches if branch.score == "masked"]
    assert scored
    for branch in scored:
        prediction, target = branch.decoder(features, mask), branch.target(x, mask)
        if target.is_floating_point():
            elsewhere, everywhere = target + (~mask.masked).unsqueeze(-1) * torch.randn_like(target), target + 0.1
        else:  # numbers of words
            other = (target + 1) % prediction.shape[-1]
            elsewhere, everywhere = torch.where(mask.masked, target, other), other
        losses = [reduce(LOSSES[branch.loss](prediction, t), mask, "masked") for t in (target, elsewhere, everywhere)]
        assert torch.equal(losses[0], losses[1])
        assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize(("method", "size"), PAIRS)
@torch.no_grad()
def test_a_masked_pixel_leaves_the_predictions(method: type[Config], size: Any) -> None:
    model, x, mask = model_of(method, size)
    hidden = mask.masked.view(-1, 1, *size.grid)
    hidden = hidden.repeat_interleave(size.patch_size, 2).repeat_interleave(size.patch_size, 3)
    assert hidden.any()
    features, again = model.encode(x, mask), model.encode(torch.where(hidden, torch.randn_like(x), x), mask)
    other = model.encode(torch.where(hidden, x, x + 0.5), mask)
    for branch in model.branches:
        prediction = branch.decoder(features, mask)
        assert torch.equal(prediction, branch.decoder(again, mask))
        assert not torch.equal(prediction, branch.decoder(other, mask))  # visible pixels do matter


@torch.no_grad()
def test_mirl_with_silent_residual_decoders_predicts_as_mae_does() -> None:
    """Gain and bias of what enters the output layer, and its bias, at 0; its direction has norm 1 and stays."""
    model = MirlConfig(segments=4).build(nano_encoder(TWELVE), NORMALIZATION, None)
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    mae = MaeConfig().build(nano_encoder(TWELVE), NORMALIZATION, None)
    shape = mae.branches[0].decoder(mae.encode(x, mask), mask).shape
    features, before = model.encode(x, mask), model.loss(x, mask).loss
    pairs = [branch.decoder for branch in model.branches]
    for pair in pairs:
        assert isinstance(pair, PairDecoder)
        for silenced in (pair.residual.norm.weight, pair.residual.norm.bias, pair.residual.head.bias):
            silenced.zero_()
    expected = torch.zeros(())
    for branch, pair in zip(model.branches, pairs, strict=True):
        assert isinstance(pair, PairDecoder)
        prediction = pair(features, mask)
        assert prediction.shape == shape
        assert torch.equal(prediction, pair.main(features, mask))
        target = branch.target(x, mask)
        assert torch.equal(target, mae.branches[0].target(x, mask))
        expected = expected + (prediction - target).square().mean(-1)[mask.masked].mean() / len(pairs)
    torch.testing.assert_close(model.loss(x, mask).loss, expected)
    assert not torch.allclose(before, expected)


def test_d2_reconstruction_reaches_the_first_eight_blocks_and_distillation_all() -> None:
    """Of twelve blocks; which tensors each of the two losses trains, by name."""
    teacher = MaskedTeacher(
        nano_encoder(VitConfig(width=40, depth=3, heads=5, patch_size=8, image_size=32)), NORMALIZATION
    )
    model = D2MaeConfig().build(nano_encoder(TWELVE), NORMALIZATION, teacher)
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    features = model.encode(x, mask)
    reached = {}
    for branch in model.branches:
        model.zero_grad()
        loss = LOSSES[branch.loss](branch.decoder(features, mask), branch.target(x, mask))
        reduce(loss, mask, branch.score).backward(retain_graph=True)
        reached[branch.name] = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    embedding = {"encoder.vit.cls_token", "encoder.vit.patch_embed.proj.weight", "encoder.vit.patch_embed.proj.bias"}

    def blocks(last: int) -> set[str]:
        return {n for n in trained if n.startswith("encoder.vit.blocks.") and int(n.split(".")[3]) < last}

    own = {branch: {n for n in trained if n.startswith(f"decoders.{branch}.")} for branch in reached}
    pixel = embedding | blocks(8) | own["pixel"] | {n for n in trained if n.startswith("encoder.vit.norm.")}
    assert reached == {"pixel": pixel, "attention": embedding | blocks(12) | own["attention"]}
