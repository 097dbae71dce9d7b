"""MAE's files (facebookresearch/mae, arXiv 2111.06377) and MAE-Lite's: timm's encoder with one decoder beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from edgemim.models.convert.plain import encoder_step
from edgemim.models.convert.plan import Drop, Move, Plan, make_plan

_DECODER = (
    (re.compile(r"decoder_embed\."), "embed."),
    (re.compile(r"decoder_blocks\."), "blocks."),
    (re.compile(r"decoder_norm\."), "norm."),
    (re.compile(r"decoder_pred\."), "head."),
    (re.compile(r"mask_token$"), "mask_token"),
)
FIXED_TABLE = Drop("fixed sine-cosine positions of the decoder, computed")


def plan_mae(weights: Mapping[str, Tensor]) -> Plan:
    """Pre-trained with or without its decoder, or fine-tuned. Raises UserError on unknown tensors."""
    return make_plan(weights, mae_step, "mae")


def mae_step(key: str) -> Move | Drop | None:
    """The step of a tensor of a masked autoencoder."""
    if key == "decoder_pos_embed":
        return FIXED_TABLE
    return decoder_step(key, "pixel") or encoder_step(key)


def decoder_step(key: str, branch: str) -> Move | None:
    """The step of a tensor of MAE's decoder, which is a branch's here; None for any other."""
    for pattern, ours in _DECODER:
        found = pattern.match(key)
        if found:
            return Move(f"decoders.{branch}.{ours}{key[found.end() :]}")
    return None
