"""Decoders: tokens go back to their places, sizes are the published ones, impossible settings are refused."""

from __future__ import annotations

import pydantic
import pytest
import torch
from tiny_training import NANO, NORMALIZATION, mask_of, nano_encoder, pixels

from edgemim.methods.decoders import (
    LinearDecoder,
    LinearDecoderConfig,
    Pick,
    TransformerDecoder,
    TransformerDecoderConfig,
    unmask,
)

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
