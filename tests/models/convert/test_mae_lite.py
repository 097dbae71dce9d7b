"""MAE-Lite's wrapper of student, teacher and adapters."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.models.convert.mae_lite import plan_mae_lite, teacher_weights  # noqa: E402
from edgemim.models.convert.plan import ENCODER, Drop  # noqa: E402


def test_the_student_is_taken_and_the_teacher_left_behind() -> None:
    weights = weights_of("d_mae")
    plan = plan_mae_lite(weights)
    state = plan.state(weights, ENCODER)
    assert torch.equal(state["blocks.1.attn.qkv.weight"], weights["model.blocks.1.attn.qkv.weight"])
    for key, step in plan.steps.items():
        assert isinstance(step, Drop) == (key.startswith("tch_model.") or key == "model.decoder_pos_embed"), key
    assert plan.moves["attn_adapter.adapter1.weight"].name == "decoders.attention_2_2.mix.weight"
    teacher = teacher_weights(weights)
    assert len(teacher) == sum(key.startswith("tch_model.") for key in weights)
    assert teacher["cls_token"].shape[-1] == 12


def test_d2s_extra_block_is_no_block_of_the_encoder() -> None:
    weights = weights_of("d2_mae")
    plan = plan_mae_lite(weights)
    assert not any("blocks.2." in key for key in plan.state(weights, ENCODER))
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["model.blocks.2.norm1.weight"] == "decoders.attention.source.norm.weight"
    assert names["model.blocks.2.attn.qkv.bias"] == "decoders.attention.source.qk.bias"
    assert names["attn_adapter.adapter1.weight"] == "decoders.attention.mix.weight"


def test_values_that_nothing_reads_are_cut_off_and_have_no_gradient() -> None:
    weights = weights_of("d2_mae")
    move = plan_mae_lite(weights).moves["model.blocks.2.attn.qkv.weight"]
    qkv = weights["model.blocks.2.attn.qkv.weight"]
    ours = move.layout.into(qkv)
    assert torch.equal(ours, qkv[:32])
    back = move.layout.back(ours)
    assert back.shape == qkv.shape
    assert torch.equal(back[:32], qkv[:32])
    assert not back[32:].any()


def test_hidden_adapters_count_from_the_embeddings_and_logits_from_the_first_block() -> None:
    weights = {"tch_model.cls_token": torch.zeros(1), "model.cls_token": torch.zeros(1)}
    weights |= {
        "attn_adapter.adapter3.weight": torch.zeros(6, 4, 1, 1),
        "hidden_adapter.adapter0.weight": torch.zeros(8, 4),
    }
    moves = plan_mae_lite(weights).moves
    assert moves["attn_adapter.adapter3.weight"].name == "decoders.attention_4_4.mix.weight"
    assert moves["hidden_adapter.adapter0.weight"].name == "decoders.hidden_0_0.adapt.weight"
    layout = moves["attn_adapter.adapter3.weight"].layout
    matrix = layout.into(torch.arange(24.0).view(6, 4, 1, 1))
    assert torch.equal(matrix, torch.arange(24.0).view(6, 4))
    assert layout.back(matrix).shape == (6, 4, 1, 1)


def test_a_plain_mae_needs_no_wrapper() -> None:
    weights = weights_of("mae")
    assert len(plan_mae_lite(weights).steps) == len(weights)


def test_a_network_fine_tuned_with_relative_positions() -> None:
    weights = weights_of("vit_finetune") | {
        "blocks.0.attn.relative_position_bias_table": torch.zeros(52, 2),
        "blocks.0.attn.relative_position_index": torch.zeros(17, 17),
    }
    plan = plan_mae_lite(weights)
    assert "blocks.0.attn.relative_position_bias_table" in plan.state(weights, ENCODER)
    assert isinstance(plan.steps["blocks.0.attn.relative_position_index"], Drop)
