"""Plain vision transformers of timm, DeiT and DINO."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import timm  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.plain import plan_deit, plan_dino, plan_timm  # noqa: E402
from edgemim.models.convert.plan import CLASSIFIER, ENCODER  # noqa: E402

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def timm_weights(name: str = "vit_tiny_patch16_224", **options: object) -> dict:
    return timm.create_model(name, **{**SIZES, **options}).state_dict()


def test_every_tensor_of_a_timm_model_has_its_place() -> None:
    weights = timm_weights(num_classes=5)
    plan = plan_timm(weights)
    assert plan.steps.keys() == weights.keys()
    assert set(plan.state(weights, CLASSIFIER)) == {"head.weight", "head.bias"}
    assert set(plan.state(weights, ENCODER)) == weights.keys() - {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("options", "key"), [({"reg_tokens": 2}, "reg_token"), ({"init_values": 0.1}, "ls1"), ({"qk_norm": True}, "q_norm")]
)
def test_variants_are_refused_by_the_name_of_what_they_have_more(options: dict, key: str) -> None:
    with pytest.raises(UserError, match=key):
        plan_timm(timm_weights(**options))


def test_a_distilled_deit_is_refused_with_what_to_do_instead() -> None:
    weights = timm_weights("deit_tiny_distilled_patch16_224")
    with pytest.raises(UserError, match=r"second class token.*--teacher\.model deit_tiny_distilled_patch16_224"):
        plan_deit(weights)
    assert plan_deit(timm_weights("deit_tiny_patch16_224")).moves


def test_dinos_teacher_is_a_backbone_beside_a_projection_head() -> None:
    backbone = {key: value for key, value in timm_weights().items() if not key.startswith("head.")}
    head = {"head.mlp.0.weight": torch.zeros(3, 3), "head.last_layer.weight_g": torch.zeros(3)}
    plan = plan_dino({f"backbone.{key}": value for key, value in backbone.items()} | head)
    state = plan.state({f"backbone.{key}": value for key, value in backbone.items()} | head, ENCODER)
    assert state.keys() == backbone.keys()
    assert set(plan.steps) - set(plan.moves) == set(head)
    assert plan_dino(backbone).state(backbone, ENCODER).keys() == backbone.keys()
