"""MoCo-v3's two encoders."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.mocov3 import plan_mocov3  # noqa: E402
from edgemim.models.convert.plan import CLASSIFIER, ENCODER  # noqa: E402


def test_the_base_encoder_is_the_encoder() -> None:
    weights = weights_of("mocov3")
    plan = plan_mocov3(weights)
    assert plan.steps.keys() == weights.keys()
    state = plan.state(weights, ENCODER)
    assert torch.equal(state["cls_token"], weights["base_encoder.cls_token"])
    assert not torch.equal(state["cls_token"], weights["momentum_encoder.cls_token"])
    assert not plan.state(weights, CLASSIFIER)  # the projector, named head there, classifies nothing
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["base_encoder.head.0.weight"] == "projector.0.weight"
    assert names["momentum_encoder.head.0.weight"] == "momentum_projector.0.weight"
    assert names["momentum_encoder.norm.bias"] == "momentum_encoder.vit.norm.bias"
    assert names["predictor.3.weight"] == "predictor.3.weight"


def test_a_linear_probes_file_is_a_plain_network() -> None:
    weights = {"cls_token": torch.zeros(1, 1, 4), "head.weight": torch.zeros(3, 4)}
    assert set(plan_mocov3(weights).state(weights, CLASSIFIER)) == {"head.weight"}


@pytest.mark.parametrize("key", ["base_encoder.layer1.0.conv1.weight", "queue", "momentum_encoder.fc.weight"])
def test_anything_else_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=key):
        plan_mocov3({**weights_of("mocov3"), key: torch.zeros(2)})
