"""Decoders: tokens go back to their places, sizes are the published ones, impossible settings are refused."""

from __future__ import annotations

import pydantic
import pytest
import torch
from tiny_training import NANO, NORMALIZATION, mask_of, nano_encoder, pixels

from edgemim.methods.decoders import (
    FuseStages,
    LinearDecoder,
    LinearDecoderConfig,
    Pick,
    TransformerDecoder,
    TransformerDecoderConfig,
    final_tokens,
    unmask,
)
from edgemim.models.build import build_encoder
from edgemim.models.sizes import HieraConfig

X, MASK = NORMALIZATION.apply(pixels(3)), mask_of(3)


def test_tokens_go_back_to_their_places() -> None:
    features = nano_encoder()(X, MASK)
    tokens, hole = torch.randn(3, 5, 6), torch.full((1, 1, 6), 7.0)
    whole = unmask(tokens, hole, MASK, features)
    assert whole.shape == (3, 17, 6)
    for row in range(3):
        assert torch.equal(whole[row, 0], tokens[row, 0])  # class token
        seen = 1
        for patch in range(16):
            if MASK.masked[row, patch]:
                assert torch.equal(whole[row, 1 + patch], hole[0, 0])
            else:
                assert torch.equal(whole[row, 1 + patch], tokens[row, seen])
                seen += 1


def test_pick_reads_a_tap_as_it_is_or_behind_the_norm() -> None:
    encoder = nano_encoder()
    features = encoder(X, MASK, taps=[1, 2])
    assert torch.equal(Pick(1, normed=False)(features), features.tokens[1])
    assert torch.equal(Pick(1)(features), encoder.vit.norm(features.tokens[1]))


def test_a_transformer_decoder_predicts_every_patch() -> None:
    config = TransformerDecoderConfig(width=12, heads=3, depth=2)
    decoder = config.build(Pick(2), NANO.width, 30, NANO.grid)
    assert len(decoder.blocks) == 2
    features = nano_encoder()(X, MASK)
    assert decoder(features, MASK).shape == (3, 16, 30)
    assert "positions" not in decoder.state_dict()  # computed, not learnt


def test_positions_tell_masked_patches_apart() -> None:
    decoder = TransformerDecoderConfig(width=12).build(Pick(2), NANO.width, 30, NANO.grid)
    prediction = decoder(nano_encoder()(X, MASK), MASK)[0]
    hidden = prediction[MASK.masked[0]]
    assert (torch.cdist(hidden, hidden) + torch.eye(len(hidden)) > 1e-4).all()


def test_the_default_is_the_lightweight_studys() -> None:
    decoder = TransformerDecoderConfig().build(Pick(12), 192, 768, (14, 14))
    embed, hole, block = 192 * 96 + 96, 96, 4 * 96 + 96 * 288 + 288 + 96 * 96 + 96 + 2 * 96 * 384 + 384 + 96
    assert sum(p.numel() for p in decoder.parameters()) == embed + hole + block + 2 * 96 + 96 * 768 + 768


def test_mlp_ratio_sets_the_hidden_width() -> None:
    decoder = TransformerDecoderConfig(width=12, mlp_ratio=2.0).build(Pick(2), NANO.width, 30, NANO.grid)
    assert decoder.blocks[0].mlp.fc1.weight.shape == (24, 12)


def test_a_linear_decoder_maps_each_token_alone() -> None:
    encoder = nano_encoder()
    nothing = mask_of(3, ratio=0.0)
    decoder = LinearDecoderConfig().build(Pick(2), NANO.width, 30, NANO.grid)
    assert isinstance(decoder, LinearDecoder)
    features = encoder(X, nothing)
    expected = features.last[:, 1:] @ decoder.head.weight.T + decoder.head.bias
    torch.testing.assert_close(decoder(features, nothing), expected)
    with pytest.raises(ValueError, match="dropped patches"):
        decoder(encoder(X, MASK), MASK)


@pytest.mark.parametrize("wrong", [{"width": 98, "heads": 3}, {"width": 100, "heads": 3}, {"depth": 0}, {"heads": 0}])
def test_impossible_decoders_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(pydantic.ValidationError):
        TransformerDecoderConfig.model_validate(wrong)


def test_a_neck_with_weights_keeps_its_own_initialisation() -> None:
    neck = torch.nn.Linear(4, 4)
    before = neck.weight.clone()
    TransformerDecoder(neck, 4, 8, (2, 2), width=8, depth=1, heads=2)
    assert torch.equal(neck.weight, before)


@pytest.mark.parametrize("tap", [4, 6])
def test_stages_are_fused_by_convolutions_of_their_maps(tap: int) -> None:
    """Against strided convolutions of the whole maps, as the published model computes them in each mask unit."""
    size = HieraConfig(embed_dim=4, stages=(1, 1, 2, 2), patch_stride=2, patch_kernel=3, image_size=32)
    torch.manual_seed(0)
    encoder, neck = build_encoder(size).eval(), final_tokens(size, tap)
    assert isinstance(neck, FuseStages) and neck.taps == (1, 2, tap)
    x = torch.randn(2, 3, 32, 32)
    maps = encoder.vit.forward_intermediates(x, coarse=False, intermediates_only=True)
    stages = [head(maps[read - 1]) for head, read in zip(neck.heads, neck.taps, strict=False)]
    fused = sum(stages) if tap < 5 else sum(stages) + maps[-1]  # the last stage enters as it is
    expected = encoder.vit.head.norm(fused.flatten(2).transpose(1, 2))
    torch.testing.assert_close(neck(encoder(x, taps=neck.taps)), expected, rtol=1e-4, atol=1e-5)


def test_learnt_positions_are_drawn_small_and_trained() -> None:
    torch.manual_seed(0)
    config = TransformerDecoderConfig(width=64, heads=4)
    decoder = config.build(Pick(1), 24, 12, (8, 8), prefix=0, learn_positions=True)
    assert isinstance(decoder.positions, torch.nn.Parameter) and decoder.positions.shape == (1, 64, 64)
    assert 0.017 < decoder.positions.std() < 0.023
