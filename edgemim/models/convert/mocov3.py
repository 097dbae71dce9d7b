"""MoCo-v3's files (facebookresearch/moco-v3, arXiv 2104.02057): base and momentum encoder, projectors, predictor.

Its position table puts the row first, where ours put the column; it is taken over as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgemim.models.convert.plain import encoder_step
from edgemim.models.convert.plan import ENCODER, Move, Plan, make_plan

_BASE, _MOMENTUM = "base_encoder.", "momentum_encoder."
_PROJECTIONS = {
    "base_encoder.head.": "projector.",
    "momentum_encoder.head.": "momentum_projector.",
    "predictor.": "predictor.",
}


def plan_mocov3(weights: Mapping[str, Tensor]) -> Plan:
    """Pre-trained: the base encoder is taken, as the authors do; or a plain encoder with a classifier.

    Raises:
        UserError: on unknown tensors.
    """
    whole = any(key.startswith(_BASE) for key in weights)
    return make_plan(weights, _step if whole else encoder_step, "mocov3")


def _step(key: str) -> Move | None:
    for theirs, ours in _PROJECTIONS.items():
        if key.startswith(theirs):
            return Move(ours + key.removeprefix(theirs))
    side = _BASE if key.startswith(_BASE) else _MOMENTUM
    step = encoder_step(key.removeprefix(side)) if key.startswith(side) else None
    if step is None or side == _BASE:
        return step
    return Move(step.name.replace(ENCODER, "momentum_encoder.vit."))
