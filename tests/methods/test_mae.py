"""MAE's composition; its numbers are compared with the published code in tests/golden."""

from __future__ import annotations

import pydantic
import pytest
import torch
from tiny_training import NANO, NORMALIZATION, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.decoders import LinearDecoderConfig, TransformerDecoder
from edgemim.methods.mae import MaeConfig
from edgemim.methods.targets import PixelTarget


def test_one_branch_of_masked_pixels() -> None:
    model = MaeConfig().build(nano_encoder(), NORMALIZATION, None)
    (branch,) = model.branches
    assert (branch.loss, branch.weight, branch.score) == ("mse", 1.0, "masked")
    assert branch.target == PixelTarget(NANO.patch_size, normalize=True)
    assert isinstance(branch.decoder, TransformerDecoder)
    assert model.taps == (NANO.depth,)
    assert model.masking.ratio == 0.75


def test_norm_pix_loss_can_be_left_out() -> None:
    model = MaeConfig(norm_pix_loss=False).build(nano_encoder(), NORMALIZATION, None)
    assert model.branches[0].target == PixelTarget(NANO.patch_size, normalize=False)


def test_the_loss_by_hand() -> None:
    model = MaeConfig().build(nano_encoder(), NORMALIZATION, None)
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    prediction = model.branches[0].decoder(model.encoder(x, mask), mask)
    total = count = 0.0
    for row in range(2):
        for patch in range(16):
            if mask.masked[row, patch]:
                top, left = 8 * (patch // 4), 8 * (patch % 4)
                block = x[row, :, top : top + 8, left : left + 8].permute(1, 2, 0).flatten()
                wanted = (block - block.mean()) / (block.var() + 1e-6).sqrt()
                total += (prediction[row, patch] - wanted).square().mean().item()
                count += 1
    assert model.loss(x, mask).loss.item() == pytest.approx(total / count, rel=1e-5)


def test_a_small_model_learns_one_batch() -> None:
    torch.manual_seed(0)
    model = MaeConfig(mask_ratio=0.5).build(nano_encoder(), NORMALIZATION, None)
    ramp = torch.arange(32).view(1, 1, 1, 32).expand(4, 3, 32, 32)
    x, mask = NORMALIZATION.apply((ramp * 8).to(torch.uint8)), mask_of(4, ratio=0.5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model.loss(x, mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_ratios_without_meaning_are_refused(ratio: float) -> None:
    with pytest.raises(pydantic.ValidationError):
        MaeConfig(mask_ratio=ratio)


def test_what_cannot_be_trained_is_refused_before_the_first_step() -> None:
    with pytest.raises(UserError, match="leaves none"):
        MaeConfig(mask_ratio=0.97).build(nano_encoder(), NORMALIZATION, None)
    with pytest.raises(UserError, match="linear decoder"):
        MaeConfig(decoder=LinearDecoderConfig()).build(nano_encoder(), NORMALIZATION, None)
