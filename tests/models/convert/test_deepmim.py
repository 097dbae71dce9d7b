"""DeepMIM's four numbered decoders."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.deepmim import plan_deepmim  # noqa: E402


def test_a_decoders_number_stands_for_its_block() -> None:
    weights = weights_of("deepmim")
    plan = plan_deepmim(weights, (1, 2, 3, 4))
    assert plan.steps.keys() == weights.keys()
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["decoder_blocks2.0.norm1.weight"] == "decoders.block_2.blocks.0.norm1.weight"
    assert names["mask_token4"] == "decoders.block_4.mask_token"
    assert names["decoder_pred1.bias"] == "decoders.block_1.head.bias"
    assert names["blocks.3.norm1.weight"] == "encoder.vit.blocks.3.norm1.weight"


def test_the_released_class_reads_blocks_6_8_10_and_the_last() -> None:
    weights = {f"blocks.{i}.norm1.weight": torch.ones(2) for i in range(24)}
    weights |= {f"mask_token{i}": torch.ones(2) for i in (1, 2, 3, 4)}
    names = [plan_deepmim(weights).moves[f"mask_token{i}"].name for i in (1, 2, 3, 4)]
    assert names == [f"decoders.block_{tap}.mask_token" for tap in (6, 8, 10, 24)]


def test_a_fifth_decoder_is_unknown() -> None:
    with pytest.raises(UserError, match="mask_token5"):
        plan_deepmim({**weights_of("deepmim"), "mask_token5": torch.zeros(1)})


def test_more_than_nine_decoders_have_numbers_of_two_digits() -> None:
    taps = tuple(range(1, 13))
    names = plan_deepmim({f"mask_token{i}": torch.zeros(1) for i in taps}, taps).moves
    assert names["mask_token12"].name == "decoders.block_12.mask_token"
