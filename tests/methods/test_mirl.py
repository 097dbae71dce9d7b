"""MIRL's segments, pairs and context; its numbers are compared with the published code in tests/golden."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NORMALIZATION, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.mirl import CrossAttention, LevelFeatures, MirlConfig, PairDecoder, UnitLinear
from edgemim.models.sizes import SIZES, VitConfig
from edgemim.models.weights import bare_vit

SIX = VitConfig(width=24, depth=6, heads=3, patch_size=8, image_size=32)


def build(depth: int = 6, **options: object) -> MaskedImageModel:
    encoder = nano_encoder(SIX.model_copy(update={"depth": depth}))
    return MirlConfig.model_validate(options).build(encoder, NORMALIZATION, None)


def pair(model: MaskedImageModel, number: int) -> PairDecoder:
    found = model.branches[number].decoder
    assert isinstance(found, PairDecoder)
    return found


@pytest.mark.parametrize(
    ("depth", "options", "taps"),
    [
        (12, {}, (0, 2, 4, 6, 8, 10, 12)),
        (54, {}, (0, 9, 18, 27, 36, 45, 54)),
        (24, {"segments": 4}, (0, 6, 12, 18, 24)),
        (4, {}, (0, 1, 2, 3, 4)),
        (2, {}, (0, 1, 2)),
    ],
)
def test_segments(depth: int, options: dict[str, int], taps: tuple[int, ...]) -> None:
    model = build(depth, **options)
    assert model.taps == taps
    assert len(model.branches) == (len(taps) - 1) // 2
    assert {branch.weight for branch in model.branches} == {2 / (len(taps) - 1)}
    for branch, number in zip(model.branches, range(len(model.branches)), strict=True):
        assert pair(model, number).main.segment + pair(model, number).residual.segment == len(taps)
        assert branch.name == f"pair_{number + 1}"


@pytest.mark.parametrize("width", [("vit_s_54", 96.6), ("vit_b_24", 171.6), ("vit_b_48", 341.7)])
def test_deep_encoders_have_the_published_numbers_of_parameters(width: tuple[str, float]) -> None:
    name, millions = width
    config = SIZES[name]
    assert isinstance(config, VitConfig)
    with torch.device("meta"):
        model = bare_vit(config, num_classes=1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_a_silent_residual_decoder_leaves_the_main_prediction() -> None:
    model = build()
    decoder = pair(model, 0)
    with torch.no_grad():
        for part in (decoder.residual.norm.weight, decoder.residual.norm.bias, decoder.residual.head.bias):
            part.zero_()
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    features = model.encode(x, mask)
    assert isinstance(features, LevelFeatures)
    prediction = decoder(features, mask)
    assert prediction.shape == (2, 16, 192)
    assert torch.equal(prediction, decoder.main(features, mask))


def test_a_decoder_sees_its_own_and_shallower_levels_only() -> None:
    model = build()
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    features = model.encode(x, mask)
    assert isinstance(features, LevelFeatures)
    decoder = pair(model, 1).main
    assert decoder.segment == 2
    for level in range(7):
        gradient = torch.autograd.grad(
            decoder(features, mask).square().mean(), features.levels[level], allow_unused=True, retain_graph=True
        )[0]
        assert (gradient is not None) == (level <= 2)


def test_the_output_layer_has_unit_norm_over_the_outputs_of_each_input() -> None:
    layer = UnitLinear(8, 20)
    with torch.no_grad():
        layer.direction *= 7
    torch.testing.assert_close(layer.weight.norm(dim=0), torch.ones(8))
    reference = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 20), dim=1)
    with torch.no_grad():
        reference.parametrizations.weight.original0.fill_(1)  # pyright: ignore
        reference.parametrizations.weight.original1.copy_(layer.direction)  # pyright: ignore
        reference.bias.copy_(layer.bias)
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), reference(x))


def test_cross_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours = CrossAttention(12, 3)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x, context = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0])


def test_depths_without_segments_are_refused() -> None:
    with pytest.raises(UserError, match="is odd"):
        build(5)
    with pytest.raises(UserError, match=r"take one of \[2, 6\]"):
        build(6, segments=4)


def test_segments_of_unequal_length_may_be_named() -> None:
    model = build(depth=7, taps=(1, 3, 4, 7))
    assert model.taps == (0, 1, 3, 4, 7)
    assert [branch.weight for branch in model.branches] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": (2, 4, 6)}, "even number of blocks"),
        ({"taps": (2, 5)}, "ends with the encoder's last, 6"),
        ({"taps": (2, 6), "segments": 4}, "agree with 'segments'"),
        ({"taps": (4, 2)}, "must rise"),
    ],
)
def test_taps_that_make_no_pairs_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)
