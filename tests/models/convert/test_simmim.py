"""SimMIM's names and the order of the numbers of a patch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.plan import ENCODER, Drop  # noqa: E402
from edgemim.models.convert.simmim import plan_simmim  # noqa: E402


def test_encoder_mask_token_and_decoder() -> None:
    weights = weights_of("simmim_vit")
    plan = plan_simmim(weights)
    assert plan.steps.keys() == weights.keys()
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["encoder.blocks.0.gamma_1"] == "encoder.vit.blocks.0.gamma_1"
    assert names["encoder.mask_token"] == "mask_token"
    assert names["decoder.0.weight"] == "decoders.pixel.head.weight"
    index = {"encoder.rel_pos_bias.relative_position_index": torch.zeros(17, 17)}
    assert isinstance(plan_simmim(index).steps["encoder.rel_pos_bias.relative_position_index"], Drop)


def test_the_last_layer_ends_in_the_channel() -> None:
    """Against the definition: theirs is (channel, row, column), ours (row, column, channel)."""
    move = plan_simmim(weights_of("simmim_vit")).moves["decoder.0.weight"]
    side, width = 2, 5
    theirs = torch.randn(3 * side * side, width, 1, 1)
    ours = move.layout.into(theirs)
    assert ours.shape == (12, width)
    for channel in range(3):
        for row in range(side):
            for column in range(side):
                expected = theirs[channel * side**2 + row * side + column, :, 0, 0]
                assert torch.equal(ours[(row * side + column) * 3 + channel], expected)
    assert torch.equal(move.layout.back(ours), theirs)
    bias = torch.arange(12.0)
    assert torch.equal(move.layout.back(move.layout.into(bias)), bias)
    with pytest.raises(UserError, match="square patch"):
        move.layout.into(torch.zeros(10, 4, 1, 1))


def test_beits_own_file_has_no_prefix_and_a_predictor_of_words() -> None:
    own = {key.removeprefix("encoder."): value for key, value in weights_of("simmim_vit").items()}
    weights = {key: value for key, value in own.items() if not key.startswith("decoder.")}
    weights["lm_head.weight"] = torch.zeros(3, 3)
    plan = plan_simmim(weights)
    assert "rel_pos_bias.relative_position_bias_table" in plan.state(weights, ENCODER)
    assert isinstance(plan.steps["lm_head.weight"], Drop)


def test_anything_else_is_refused() -> None:
    with pytest.raises(UserError, match="layers"):
        plan_simmim({"encoder.layers.0.blocks.0.norm1.weight": torch.zeros(2)})
