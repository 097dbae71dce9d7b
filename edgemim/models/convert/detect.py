"""Whose checkpoint a file is, by the names of its tensors; a wrong family is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from edgemim.errors import UserError


class Look(NamedTuple):
    """What a kind of checkpoint is called, with its article, which families read it, and a name that gives it away."""

    title: str
    families: tuple[str, ...]
    evidence: str


_PLAIN = ("mae", "mae-lite", "timm", "deit", "dino", "deepmim", "mirl", "mocov3")
# In this order: the first whose evidence is found.
LOOKS = (
    Look("a MoCo-v3", ("mocov3",), r"(base|momentum)_encoder\."),
    Look("a Hiera", ("hiera",), r"(.*\.)?(multi_scale_fusion_heads\.|encoder_norm\.|blocks\.\d+\.proj\.)"),
    Look("a MIRL", ("mirl",), r"norm_low\.|decoder_embed0_1\.|decoder_blocks0\.\d+\.cross_attn\."),
    Look("a DeepMIM", ("deepmim",), r"decoder_blocks\d\.\d+\.|decoder_embed\d\.|mask_token\d$"),
    Look("an mmpretrain", ("mff",), r"backbone\.(layers\.|proj_layers\.|ln1\.)"),
    Look("a SimMIM", ("simmim",), r"(encoder\.)?rel_pos_bias\."),
    Look("a SimMIM", ("simmim",), r"encoder\.|lm_head\."),
    Look(
        "an MAE-Lite's relative-position", ("mae-lite", "simmim"), r"blocks\.\d+\.attn\.relative_position_bias_table$"
    ),
    Look("a D-MAE", ("mae-lite",), r"tch_model\.|(attn|hidden)_adapter\."),
    Look("a distilled DeiT", ("deit",), r"dist_token$|head_dist\."),
    Look("a DINO", ("dino",), r"backbone\.blocks\.|head\.(mlp|last_layer)\."),
    Look("an MAE", ("mae", "mae-lite"), r"decoder_(blocks\.\d+|embed|pred)\."),
    Look("a plain vision transformer", _PLAIN, r"blocks\.\d+\.attn\.qkv\.weight$"),
)


def look(keys: Iterable[str]) -> tuple[Look, str] | None:
    """What a checkpoint looks like and the tensor that shows it; None if it is like none that is known."""
    keys = sorted(keys)
    for candidate in LOOKS:
        for key in keys:
            if re.match(candidate.evidence, key):
                return candidate, key
    return None


def check_family(keys: Iterable[str], family: str) -> None:
    """Raises UserError, one sentence without its subject, if the tensors are another family's or nobody's."""
    keys = list(keys)
    found = look(keys)
    if found is None:
        first = ", ".join(sorted(keys)[:3])
        raise UserError(f"looks like no checkpoint that is known (its tensors are {first}, ...)")
    candidate, key = found
    if family not in candidate.families:
        raise UserError(
            f"looks like {candidate.title} checkpoint (has {key}), not {family}; give --from {candidate.families[0]} "
            f"(for a teacher --teacher.family {candidate.families[0]})"
        )
