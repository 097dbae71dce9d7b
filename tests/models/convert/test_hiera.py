"""Hiera's names; that the numbers agree is shown by the golden cases."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert import FAMILIES, convert_weights  # noqa: E402
from edgemim.models.convert.hiera import hiera_from_official, hiera_sizes, plan_hiera, teacher_state  # noqa: E402
from edgemim.models.convert.plan import CLASSIFIER, ENCODER, Drop  # noqa: E402
from edgemim.models.sizes import HieraConfig  # noqa: E402

SIZES = HieraConfig(embed_dim=4, stages=(1, 1, 1, 1), patch_stride=2, patch_kernel=3, image_size=32)


def student() -> dict[str, torch.Tensor]:
    """A masked autoencoder without the distilling wrapper."""
    return {k.removeprefix("model."): v for k, v in weights_of("hiera_mae").items() if k.startswith("model.")}


def test_the_wrappers_student_is_taken_and_its_teacher_left_behind() -> None:
    weights = weights_of("hiera_mae")
    plan = plan_hiera(weights)
    assert plan.steps.keys() == weights.keys()
    assert all(isinstance(step, Drop) == key.startswith("tch_model.") for key, step in plan.steps.items())
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["model.encoder_norm.weight"] == "encoder.vit.head.norm.weight"
    assert names["model.multi_scale_fusion_heads.1.weight"] == "decoders.pixel.neck.heads.1.weight"
    assert names["model.decoder_pos_embed"] == "decoders.pixel.positions"  # learnt, unlike a plain encoder's
    assert names["attn_adapter.adapter3.weight"] == "decoders.attention_4_4.mix.weight"
    assert plan_hiera(weights, (2,)).moves["attn_adapter.adapter3.weight"].name == "decoders.attention_4_2.mix.weight"
    assert plan_hiera(teacher_state(weights)).state(teacher_state(weights), ENCODER).keys() >= {"pos_embed"}


def test_sizes_come_from_the_tensors() -> None:
    tensors, dropped = hiera_from_official(student())
    assert hiera_sizes(tensors, 1) == SIZES
    assert set(dropped) == {key for key in student() if key.startswith(("decoder", "mask_token", "multi"))}
    found = convert_weights(FAMILIES["hiera"], student())
    assert found.encoder.config == SIZES
    assert "hiera has at width 4" in found.notes[0]
    assert torch.equal(found.encoder.vit.state_dict()["head.norm.bias"], student()["encoder_norm.bias"])
    assert convert_weights(FAMILIES["hiera"], student(), 2).encoder.config.heads == 16


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("pos_embed", "holds no pos_embed"),
        ("patch_embed.proj.weight", r"holds no patch_embed\.proj\.weight"),
        ("blocks.2.proj.weight", "widens 2 times"),
        ("blocks.2.mlp.fc1.bias", r"blocks\.2\.mlp\.fc1\.bias is missing"),
    ],
)
def test_a_truncated_state_dict_is_one_sentence(lost: str, words: str) -> None:
    weights = student()
    del weights[lost]
    with pytest.raises(UserError, match=words):
        convert_weights(FAMILIES["hiera"], weights)


def test_a_fine_tuned_file_has_a_projection_for_its_head() -> None:
    weights = {key: value for key, value in student().items() if key.startswith(("blocks", "patch", "pos"))}
    weights |= {"norm.weight": torch.ones(32), "head.projection.weight": torch.zeros(5, 32)}
    state = plan_hiera(weights).state(weights, CLASSIFIER)
    assert set(state) == {"head.fc.weight"}


def test_anything_else_is_refused() -> None:
    with pytest.raises(UserError, match="pos_embed_temporal"):
        plan_hiera({**student(), "pos_embed_temporal": torch.zeros(1, 8, 4)})
