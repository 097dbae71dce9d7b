"""SimMIM's files (microsoft/SimMIM, arXiv 2111.09886) and BEiT's (microsoft/unilm, arXiv 2106.08254): timm's `Beit`.

SimMIM's last layer gives the numbers of a patch in the order (channel, row, column), our decoders (row, column, channel).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from edgemim.errors import UserError
from edgemim.models.convert.plan import CLASSIFIER, ENCODER, Drop, Layout, Move, Plan, make_plan

_ENCODER = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm)\.(weight|bias)|rel_pos_bias\.relative_position_bias_table"
    r"|blocks\.\d+\.(gamma_[12]|attn\.(relative_position_bias_table|qkv\.(weight|bias)|q_bias|v_bias))"
    r"|blocks\.\d+\.(norm[12]|attn\.proj|mlp\.fc[12])\.(weight|bias)"
)
_CLASSIFIER = re.compile(r"(fc_norm|head)\.(weight|bias)")


def plan_simmim(weights: Mapping[str, Tensor]) -> Plan:
    """Pre-trained with the authors' code, or fine-tuned. Raises UserError on unknown tensors."""
    return make_plan(weights, _step, "simmim")


def relative_step(key: str) -> Move | Drop | None:
    """The step of a tensor of an encoder with relative positions or of its classifier; None for any other."""
    if key.endswith("relative_position_index"):
        return Drop("index into a table of relative positions, computed")
    if _ENCODER.fullmatch(key):
        return Move(ENCODER + key)
    return Move(CLASSIFIER + key) if _CLASSIFIER.fullmatch(key) else None


def _step(key: str) -> Move | Drop | None:
    bare = key.removeprefix("encoder.")
    if bare == "mask_token":
        return Move("mask_token")
    if key.startswith("lm_head."):
        return Drop("predictor of BEiT's visual words")
    if key.startswith("decoder.0."):
        return Move(key.replace("decoder.0", "decoders.pixel.head"), _CHANNEL_LAST)
    return relative_step(bare)


def _to_last(value: Tensor) -> Tensor:
    """Outputs [3 p p, in, 1, 1] or [3 p p] of a 1 x 1 convolution to (row, column, channel), as a linear layer's."""
    rows = value.flatten(1) if value.dim() > 1 else value
    return rows.unflatten(0, (3, _pixels(value))).transpose(0, 1).flatten(0, 1)


def _to_first(value: Tensor) -> Tensor:
    rows = value.unflatten(0, (_pixels(value), 3)).transpose(0, 1).flatten(0, 1)
    return rows[..., None, None] if value.dim() > 1 else rows


def _pixels(value: Tensor) -> int:
    count = len(value) // 3
    if len(value) % 3 or math.isqrt(count) ** 2 != count:
        raise UserError(f"SimMIM's last layer gives {len(value)} numbers, not those of a square patch in 3 channels")
    return count


_CHANNEL_LAST = Layout("channel last", _to_last, _to_first)
