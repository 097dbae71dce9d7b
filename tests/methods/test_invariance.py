"""What a masked loss may not see: for every registered method, whatever it scores on masked patches.

Branches over attention, hidden states or pooled features score something else and are outside.
"""

from __future__ import annotations

import pytest
import torch
from test_every_method import METHODS, SMALL, teacher_for
from tiny_training import NORMALIZATION, keys_of, pixels

from edgemim.config import Config
from edgemim.methods.branches import LOSSES, MaskedImageModel, reduce
from edgemim.models.encoder import Encoder, TokenMask


def model_of(method: type[Config]) -> tuple[MaskedImageModel, torch.Tensor, TokenMask]:
    size = SMALL["vit_micro_32"]
    torch.manual_seed(0)
    config = method()
    model = config.build(Encoder(size), NORMALIZATION, teacher_for(config, size, {}))  # pyright: ignore
    return model, NORMALIZATION.apply(pixels(3, size.image_size)), model.masking(keys_of(3), size.tokens)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_target_perturbed_at_a_visible_patch_leaves_the_loss(method: type[Config]) -> None:
    model, x, mask = model_of(method)
    features = model.encode(x, mask)
    for branch in model.branches:
        if branch.score != "masked":
            continue
        prediction, target = branch.decoder(features, mask), branch.target(x, mask)
        visible = (~mask.masked).unsqueeze(-1) * torch.randn_like(target)
        losses = [
            reduce(LOSSES[branch.loss](prediction, t), mask, "masked") for t in (target, target + visible, target + 0.1)
        ]
        assert torch.equal(losses[0], losses[1])
        assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_masked_pixel_leaves_the_predictions(method: type[Config]) -> None:
    model, x, mask = model_of(method)
    size = model.encoder.config
    hidden = mask.masked.view(-1, 1, *size.grid)
    hidden = hidden.repeat_interleave(size.patch_size, 2).repeat_interleave(size.patch_size, 3)
    assert hidden.any()
    other = torch.where(hidden, torch.randn_like(x), x)
    features, again = model.encode(x, mask), model.encode(other, mask)
    for branch in model.branches:
        assert torch.equal(branch.decoder(features, mask), branch.decoder(again, mask))
