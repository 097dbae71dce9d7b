"""OSTrack's files (botaoye/OSTrack, arXiv 2203.11991), and the lightweight study's trackers, which are named alike."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from edgemim.errors import UserError
from edgemim.models.convert.plan import Drop, Move, Plan, make_plan
from edgemim.models.sizes import VitConfig
from edgemim.models.tracker_sizes import TrackerForm, TrackerSize

_PARTS = {"ctr": "score", "offset": "offset", "size": "size"}
_STAGE = re.compile(
    r"box_head\.conv([1-5])_(ctr|offset|size)\.(?:([01])\.)?(weight|bias|running_mean|running_var|num_batches_tracked)"
)
_ENCODER = re.compile(r"(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)")
_OWN = {"pos_embed_z": "template_positions", "pos_embed_x": "search_positions"}
_UNUSED = {
    "cls_token": "class token; a tracker has none",
    "pos_embed": "positions of pre-training; a tracker has tables of its own for template and search region",
}


def plan_ostrack(weights: Mapping[str, Tensor]) -> Plan:
    """A trained tracker's tensors under the names of `OneStreamTracker`. Raises UserError on unknown tensors."""
    return make_plan(weights, _step, "ostrack")


def ostrack_size(weights: Mapping[str, Tensor], heads: int, form: TrackerForm | None = None) -> TrackerSize:
    """The tracker that a file's tensors imply.

    Args:
        weights: the file's, under their original names.
        heads: attention heads, which no file stores.
        form: what the tensors do not tell (elimination, factors of the crops); default as published.

    Raises:
        UserError: if the file lacks what a tracker needs.
    """
    try:
        width, _, patch, _ = weights["backbone.patch_embed.proj.weight"].shape
        tokens = {name: weights[f"backbone.{name}"].shape[1] for name in _OWN}
        hidden = weights["backbone.blocks.0.mlp.fc1.weight"].shape[0]
        head_width = weights["box_head.conv1_ctr.0.weight"].shape[0]
    except KeyError as error:
        raise UserError(
            f"holds no {error.args[0]}, which a tracker has: no OSTrack checkpoint, or a variant"
        ) from error
    base = weights.get("backbone.pos_embed")
    grid = math.isqrt(base.shape[1]) if base is not None else math.isqrt(tokens["pos_embed_x"])
    encoder = VitConfig(
        width=width,
        depth=len({found[1] for key in weights if (found := re.match(r"backbone\.blocks\.(\d+)\.", key))}),
        heads=heads,
        patch_size=patch,
        image_size=patch * grid,
        mlp_ratio=hidden / width,
    )
    sides = {"template_size": tokens["pos_embed_z"], "search_size": tokens["pos_embed_x"]}
    known: dict[str, Any] = {name: patch * math.isqrt(count) for name, count in sides.items()}
    own = (form or TrackerForm()).model_dump()
    return TrackerSize.model_validate({**own, **known, "head_width": head_width, "encoder": encoder})


def _step(key: str) -> Move | Drop | None:
    bare = key.removeprefix("backbone.")
    if bare != key:
        if bare in _OWN:
            return Move(_OWN[bare])
        if bare in _UNUSED:
            return Drop(_UNUSED[bare])
        return Move(f"vit.{bare}") if _ENCODER.fullmatch(bare) else None
    found = _STAGE.fullmatch(key)
    if found is None:
        return None
    number, part, layer, name = found.groups()
    place = f"{int(number) - 1}.{layer}" if layer is not None else f"{int(number) - 1}"
    return Move(f"head.{_PARTS[part]}.{place}.{name}")
