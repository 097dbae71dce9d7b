"""Plain vision transformers under timm's names: timm's own files, DeiT (arXiv 2012.12877) and DINO (arXiv 2104.14294)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from edgemim.errors import UserError
from edgemim.models.convert.plan import CLASSIFIER, ENCODER, Drop, Move, Plan, make_plan

_ENCODER = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm)\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
)
_CLASSIFIER = re.compile(r"(fc_norm|head)\.(weight|bias)")
_DINO_HEAD = re.compile(r"head\.(mlp|last_layer)\.")


def encoder_step(key: str) -> Move | None:
    """The step of a tensor of a plain encoder or of its classifier; None for any other."""
    if _ENCODER.fullmatch(key):
        return Move(ENCODER + key)
    return Move(CLASSIFIER + key) if _CLASSIFIER.fullmatch(key) else None


def plan_timm(weights: Mapping[str, Tensor]) -> Plan:
    """A timm `VisionTransformer`'s state dict. Raises UserError on tensors of a variant."""
    return make_plan(weights, encoder_step, "timm")


def plan_deit(weights: Mapping[str, Tensor]) -> Plan:
    """DeiT's file. Raises UserError on the distilled variant, which has a second class token."""
    if "dist_token" in weights:
        raise UserError(
            "a distilled DeiT has a second class token that the encoder has no place for; use it as a teacher with "
            "--teacher checkpoint --teacher.model deit_tiny_distilled_patch16_224 (or another size)"
        )
    return make_plan(weights, encoder_step, "deit")


def plan_dino(weights: Mapping[str, Tensor]) -> Plan:
    """DINO's backbone file, or the teacher of a full checkpoint (`backbone.*` beside its projection head)."""

    def rule(key: str) -> Move | Drop | None:
        if _DINO_HEAD.match(key):
            return Drop("projection head of the self-distillation")
        return encoder_step(key.removeprefix("backbone."))

    return make_plan(weights, rule, "dino")
