"""MIRL's files (russellllaputa/MIRL, arXiv 2309.14136): PaddlePaddle's, whose linear weights are [in, out]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from edgemim.models.convert.plain import encoder_step
from edgemim.models.convert.plan import TRANSPOSED, Drop, Move, Plan, make_plan

_NUMBERED = re.compile(r"(norm|decoder_(?:blocks|embed|norm|pred)|mask_token)(\d+)(?=\.|$)")
_DECODER_PARTS = {"decoder_blocks": "blocks", "decoder_norm": "norm", "decoder_pred": "head"}
_BLOCK_NORMS = {"norm2": "norm_query", "norm3": "norm_context", "norm4": "norm_mlp"}
_LOW = {"norm_low.": "neck.norms.0.", "decoder_embed0_1.": "neck.embeds.0."}


def plan_mirl(weights: Mapping[str, Tensor]) -> Plan:
    """Pre-trained with or without its decoders. Raises UserError on unknown tensors.

    Matrices are transposed where the queries, keys and values of the first block are stored as [in, 3 in].
    """
    segments = sum(key.startswith("mask_token") for key in weights)
    qkv = weights.get("blocks.0.attn.qkv.weight")
    paddle = qkv is not None and qkv.shape[0] < qkv.shape[1]

    def rule(key: str) -> Move | Drop | None:
        if key.startswith("decoder_pos_embed"):
            return Drop("fixed sine-cosine positions of a decoder, computed")
        if key.endswith(".weight_g"):
            return Drop("gain of a decoder's last layer, held at 1")
        step = _step(key, segments)
        turn = paddle and step is not None and weights[key].dim() == 2
        return replace(step, layout=TRANSPOSED) if step and turn else step

    return make_plan(weights, rule, "mirl")


def _step(key: str, segments: int) -> Move | None:
    for theirs, ours in _LOW.items():
        if key.startswith(theirs):
            return Move(key.replace(theirs, ours))
    numbered = _NUMBERED.match(key)
    if numbered is None:
        return encoder_step(key)
    part, number, rest = numbered[1], int(numbered[2]), key[numbered.end() :]
    if part in ("norm", "decoder_embed"):
        return Move(f"neck.{'norms' if part == 'norm' else 'embeds'}.{number + 1}{rest}")
    # Shallow segments predict the main part, their mirrors what is left.
    pair, role = (number, "main") if number < segments // 2 else (segments - 1 - number, "residual")
    rest = rest.replace("weight_v", "direction")
    for theirs, ours in _BLOCK_NORMS.items():
        rest = rest.replace(f".{theirs}.", f".{ours}.")
    return Move(f"decoders.pair_{pair + 1}.{role}.{_DECODER_PARTS.get(part, part)}{rest}")
