"""MAE's own names; that the numbers agree is shown by the golden case."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.mae import plan_mae  # noqa: E402
from edgemim.models.convert.plan import CLASSIFIER, ENCODER, Drop  # noqa: E402


def test_encoder_decoder_and_table_of_a_pre_trained_file() -> None:
    weights = weights_of("mae")
    plan = plan_mae(weights)
    assert plan.steps.keys() == weights.keys()
    dropped = {key: step for key, step in plan.steps.items() if isinstance(step, Drop)}
    assert set(dropped) == {"decoder_pos_embed"}
    assert "sine-cosine" in dropped["decoder_pos_embed"].reason
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["blocks.1.attn.qkv.weight"] == "encoder.vit.blocks.1.attn.qkv.weight"
    assert names["decoder_blocks.0.mlp.fc1.bias"] == "decoders.pixel.blocks.0.mlp.fc1.bias"
    assert names["decoder_pred.weight"] == "decoders.pixel.head.weight"
    assert names["mask_token"] == "decoders.pixel.mask_token"
    assert len(plan.state(weights, ENCODER)) == sum(not key.startswith(("decoder", "mask")) for key in weights)


def test_an_encoder_alone_and_a_fine_tuned_file() -> None:
    weights = {key: value for key, value in weights_of("mae").items() if not key.startswith(("decoder", "mask"))}
    assert plan_mae(weights).state(weights, ENCODER).keys() == weights.keys()
    tuned = weights_of("vit_finetune")
    assert set(plan_mae(tuned).state(tuned, CLASSIFIER)) == {
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize("key", ["blocks.0.attn.q_norm.weight", "decoder_blocks1.0.norm1.weight", "optimizer.step"])
def test_anything_else_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=key):
        plan_mae({**weights_of("mae"), key: torch.zeros(2)})
