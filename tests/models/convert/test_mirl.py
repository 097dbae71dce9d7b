"""MIRL's names and PaddlePaddle's layout."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.mirl import plan_mirl  # noqa: E402
from edgemim.models.convert.plan import ENCODER, Drop  # noqa: E402


def test_matrices_are_turned_and_nothing_else() -> None:
    weights = weights_of("mirl")
    state = plan_mirl(weights).state(weights, ENCODER)
    assert weights["blocks.0.attn.qkv.weight"].shape == (16, 48)
    for key, value in state.items():
        assert torch.equal(value, weights[key].T if weights[key].dim() == 2 else weights[key]), key


def test_a_file_in_torchs_layout_is_left_as_it_is() -> None:
    weights = {key: value.T if value.dim() == 2 else value for key, value in weights_of("mirl").items()}
    state = plan_mirl(weights).state(weights, ENCODER)
    assert all(torch.equal(value, weights[key]) for key, value in state.items())


def test_a_deep_segment_is_the_residual_of_its_mirror() -> None:
    weights = weights_of("mirl")
    plan = plan_mirl(weights)
    assert plan.steps.keys() == weights.keys()
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["mask_token0"] == "decoders.pair_1.main.mask_token"
    assert names["mask_token5"] == "decoders.pair_1.residual.mask_token"
    assert names["decoder_pred3.weight_v"] == "decoders.pair_3.residual.head.direction"
    assert names["decoder_blocks2.0.norm3.weight"] == "decoders.pair_3.main.blocks.0.norm_context.weight"
    assert names["norm_low.bias"] == "neck.norms.0.bias"
    assert names["norm4.bias"] == "neck.norms.5.bias"
    assert names["norm.bias"] == "encoder.vit.norm.bias"
    assert names["decoder_embed0_1.bias"] == "neck.embeds.0.bias"
    assert names["decoder_embed0.bias"] == "neck.embeds.1.bias"
    assert isinstance(plan.steps["decoder_pred0.weight_g"], Drop)


def test_anything_else_is_refused() -> None:
    with pytest.raises(UserError, match=r"blocks\.0\.gamma"):
        plan_mirl({**weights_of("mirl"), "blocks.0.gamma": torch.zeros(2)})
