"""MFF's files (open-mmlab/mmpretrain, arXiv 2308.00261), with MAE's and PixMIM's of the same code: mmpretrain's names.

Position tables put the row first, where ours put the column; they are taken over as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from edgemim.models.convert.plan import CLASSIFIER, ENCODER, Drop, Layout, Move, Plan, make_plan

_DECODER = "decoders.pixel."
_NAMES = (
    (r"backbone\.proj_layers\.", _DECODER + "neck.projections."),
    (r"backbone\.layers\.", ENCODER + "blocks."),
    (r"backbone\.patch_embed\.projection\.", ENCODER + "patch_embed.proj."),
    (r"backbone\.ln1\.", ENCODER + "norm."),
    (r"backbone\.(?=cls_token$|pos_embed$)", ENCODER),
    (r"neck\.decoder_blocks\.", _DECODER + "blocks."),
    (r"neck\.decoder_embed\.", _DECODER + "embed."),
    (r"neck\.decoder_pred\.", _DECODER + "head."),
    (r"neck\.ln1\.", _DECODER + "norm."),
    (r"neck\.mask_token$", _DECODER + "mask_token"),
    # A fine-tuned classifier.
    (r"backbone\.ln2\.", CLASSIFIER + "fc_norm."),
    (r"head\.layers\.head\.", CLASSIFIER + "head."),
    (r"head\.fc\.", CLASSIFIER + "head."),
)
_INSIDE = (
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
_VECTOR = Layout("flattened", lambda x: x.flatten(), lambda x: x.view(-1, 1, 1, 1))


def plan_mff(weights: Mapping[str, Tensor]) -> Plan:
    """Pre-trained or fine-tuned by mmpretrain. Raises UserError on unknown tensors."""
    return make_plan(weights, _step, "mff")


def _step(key: str) -> Move | Drop | None:
    if key == "neck.decoder_pos_embed":
        return Drop("fixed sine-cosine positions of the decoder, computed")
    if key.startswith("data_preprocessor."):
        return Drop("normalisation of the input, which stands in the configuration")
    if key == "backbone.proj_weights":
        return Move(_DECODER + "neck.weights", _VECTOR)
    for pattern, ours in _NAMES:
        found = re.match(pattern, key)
        if found:
            rest = key[found.end() :]
            for inside, name in _INSIDE:
                rest = re.sub(inside, name, rest)
            return Move(ours + rest)
    return None
