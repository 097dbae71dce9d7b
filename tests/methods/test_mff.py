"""MFF's composition; its numbers are compared with the published code in tests/golden."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NORMALIZATION, keys_of, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.decoders import Fuse
from edgemim.methods.mae import MaeConfig
from edgemim.methods.mff import MffConfig, spread
from edgemim.methods.targets import LowPassTarget
from edgemim.models.sizes import VitConfig

SIX = VitConfig(width=24, depth=6, heads=3, patch_size=8, image_size=32)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (1, 3, 5, 7, 9, 12)), (24, (1, 5, 10, 14, 19, 24)), (6, (1, 2, 3, 4, 5, 6)), (2, (1, 2)), (1, (1,))],
)
def test_blocks_are_spread_as_published(depth: int, blocks: tuple[int, ...]) -> None:
    assert spread(depth, 6) == blocks


def test_a_one_hot_fusion_is_mae() -> None:
    torch.manual_seed(0)
    fused = MffConfig().build(nano_encoder(SIX), NORMALIZATION, None)
    plain = MaeConfig().build(nano_encoder(SIX), NORMALIZATION, None)
    state = fused.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    neck = fused.branches[0].decoder.neck
    assert isinstance(neck, Fuse)
    with torch.no_grad():
        neck.weights[:-1] = -1e9
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    torch.testing.assert_close(fused.loss(x, mask).loss, plain.loss(x, mask).loss, rtol=0, atol=0)


def test_fusion_starts_uniform_and_the_low_pass_target_combines() -> None:
    model = MffConfig(target="low_pass", radius=5.0).build(nano_encoder(SIX), NORMALIZATION, None)
    neck, target = model.branches[0].decoder.neck, model.branches[0].target
    assert isinstance(neck, Fuse)
    assert torch.equal(neck.weights.softmax(0), torch.full((6,), 1 / 6))
    assert isinstance(target, LowPassTarget)
    assert target.radius == 5.0
    painted = model.reconstruct(pixels(2), keys_of(2))
    assert painted is not None
    assert painted[1].shape == (2, 3, 32, 32)


def test_blocks_may_be_named_and_those_behind_the_deepest_are_not_trained() -> None:
    torch.manual_seed(0)
    model = MffConfig(blocks=(2, 3, 5)).build(nano_encoder(SIX), NORMALIZATION, None)
    assert model.taps == (2, 3, 5)
    model.loss(NORMALIZATION.apply(pixels(2)), mask_of(2)).loss.backward()
    trained = {
        int(name.split(".")[3])
        for name, p in model.named_parameters()
        if ".blocks." in name and p.grad is not None and name.startswith("encoder.vit.")
    }
    assert trained == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("blocks", [(3, 1, 6), (0, 2), (2, 2, 6), (1, 7)])
def test_blocks_out_of_order_or_of_the_encoder_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"'blocks' .* must rise and lie within the encoder's blocks 1 to 6"):
        MffConfig(blocks=blocks).check(SIX)
