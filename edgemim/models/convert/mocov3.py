"""MoCo-v3's files (facebookresearch/moco-v3, arXiv 2104.02057): base and momentum encoder, projectors, predictor.

Its position table puts the row first, where ours put the column; it is taken over as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgemim.models.convert.plain import encoder_step
from edgemim.models.convert.plan import Drop, Move, Plan, make_plan

_BASE, _MOMENTUM = "base_encoder.", "momentum_encoder."


def plan_mocov3(weights: Mapping[str, Tensor]) -> Plan:
    """Pre-trained: the base encoder is taken, as the authors do; or a plain encoder with a classifier.

    Raises:
        UserError: on unknown tensors.
    """
    whole = any(key.startswith(_BASE) for key in weights)

    def rule(key: str) -> Move | Drop | None:
        if not whole:
            return encoder_step(key)
        if key.startswith(_MOMENTUM):
            return Drop("the momentum encoder")
        if key.startswith("predictor."):
            return Drop("predictor of the other view")
        if key.startswith(f"{_BASE}head."):
            return Drop("projector")
        return encoder_step(key.removeprefix(_BASE)) if key.startswith(_BASE) else None

    return make_plan(weights, rule, "mocov3")
