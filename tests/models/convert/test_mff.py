"""mmpretrain's names."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.mff import plan_mff  # noqa: E402
from edgemim.models.convert.plan import CLASSIFIER, ENCODER, Drop, swap_halves  # noqa: E402
from edgemim.models.position import sincos_positions  # noqa: E402


def test_names_of_backbone_and_neck() -> None:
    weights = weights_of("mff")
    plan = plan_mff(weights)
    assert plan.steps.keys() == weights.keys()
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["backbone.layers.5.ffn.layers.0.0.weight"] == "encoder.vit.blocks.5.mlp.fc1.weight"
    assert names["backbone.layers.0.ffn.layers.1.bias"] == "encoder.vit.blocks.0.mlp.fc2.bias"
    assert names["backbone.layers.0.ln2.bias"] == "encoder.vit.blocks.0.norm2.bias"
    assert names["backbone.ln1.bias"] == "encoder.vit.norm.bias"
    assert names["backbone.proj_layers.4.bias"] == "decoders.pixel.neck.projections.4.bias"
    assert names["neck.decoder_blocks.0.ln1.bias"] == "decoders.pixel.blocks.0.norm1.bias"
    assert names["neck.ln1.weight"] == "decoders.pixel.norm.weight"
    share = plan.moves["backbone.proj_weights"]
    assert share.layout.into(weights["backbone.proj_weights"]).shape == (6,)
    assert share.layout.back(torch.zeros(6)).shape == (6, 1, 1, 1)


def test_the_position_table_is_taken_over_row_first() -> None:
    weights = weights_of("mff")
    table = plan_mff(weights).state(weights, ENCODER)["pos_embed"]
    assert torch.equal(table, weights["backbone.pos_embed"])
    ours = sincos_positions(16, (4, 4), prefix=1)
    assert not torch.allclose(table, ours)
    assert torch.allclose(table, swap_halves(ours))


def test_a_fine_tuned_classifier_and_the_preprocessor() -> None:
    extra = {"backbone.ln2.weight": 2, "head.layers.head.weight": 3, "data_preprocessor.mean": 4}
    weights = {key: torch.zeros(size) for key, size in extra.items()}
    plan = plan_mff(weights)
    assert set(plan.state(weights, CLASSIFIER)) == {"fc_norm.weight", "head.weight"}
    assert isinstance(plan.steps["data_preprocessor.mean"], Drop)


@pytest.mark.parametrize("key", ["backbone.other.weight", "neck.other", "cls_token"])
def test_anything_else_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=key):
        plan_mff({**weights_of("mff"), key: torch.zeros(2)})
