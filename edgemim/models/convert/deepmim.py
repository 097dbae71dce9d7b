"""DeepMIM's files (OliverRensu/DeepMIM, arXiv 2303.08817): timm's encoder and four numbered decoders on four taps."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from edgemim.models.convert.mae import FIXED_TABLE, decoder_step
from edgemim.models.convert.plain import encoder_step
from edgemim.models.convert.plan import Drop, Move, Plan, make_plan

_NUMBERED = re.compile(r"(decoder_(?:blocks|embed|norm|pred)|mask_token)(\d+)(?=\.|$)")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def plan_deepmim(weights: Mapping[str, Tensor], taps: tuple[int, ...] = ()) -> Plan:
    """Pre-trained with or without its decoders, or fine-tuned.

    Args:
        weights: the file's tensors.
        taps: the block that each decoder reads, in the order of their numbers; default 6, 8, 10 and the last, which
            the released class holds fixed.

    Raises:
        UserError: on unknown tensors.
    """
    depth = 1 + max((int(found[1]) for key in weights if (found := _BLOCK.match(key))), default=0)
    taps = taps or (6, 8, 10, depth)

    def rule(key: str) -> Move | Drop | None:
        numbered = _NUMBERED.match(key)
        if key == "decoder_pos_embed":
            return FIXED_TABLE
        if numbered is None:
            return encoder_step(key)
        part, number = numbered.groups()
        if not 1 <= int(number) <= len(taps):
            return None
        return decoder_step(part + key[numbered.end() :], f"block_{taps[int(number) - 1]}")

    return make_plan(weights, rule, "deepmim")
