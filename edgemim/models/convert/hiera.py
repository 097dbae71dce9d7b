"""Hiera's files (facebookresearch/hiera, arXiv 2306.00989) and the lightweight study's (arXiv 2404.12210): pre-trained,
as the study's distilling wrapper holds them, or fine-tuned.

The wrapper holds the student below `model.`, the frozen teacher below `tch_model.` and adapters of attention heads. timm
keeps the final norm inside its head; a masked autoencoder's `encoder_norm` is the same part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor

from edgemim.errors import UserError
from edgemim.models.convert.plan import CLASSIFIER, ENCODER, Drop, Layout, Move, Plan, make_plan
from edgemim.models.sizes import HieraConfig

_SAME = re.compile(
    r"pos_embed|patch_embed\.proj\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]|proj|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
)
_NORM = re.compile(r"(encoder_norm|norm)\.")
_PIXEL = (
    (re.compile(r"multi_scale_fusion_heads\."), "neck.heads."),
    (re.compile(r"decoder_embed\."), "embed."),
    (re.compile(r"decoder_blocks\."), "blocks."),
    (re.compile(r"decoder_norm\."), "norm."),
    (re.compile(r"decoder_pred\."), "head."),
    (re.compile(r"decoder_pos_embed$"), "positions"),
    (re.compile(r"mask_token$"), "mask_token"),
)
_ADAPTER = re.compile(r"attn_adapter\.adapter(\d+)\.weight")
_CONVOLUTION = Layout("1 x 1 convolution as a matrix", lambda x: x.flatten(1), lambda x: x[..., None, None])
_BLOCK = re.compile(r"(.*?)blocks\.(\d+)\.")


def plan_hiera(weights: Mapping[str, Tensor], teacher_layers: tuple[int, ...] = ()) -> Plan:
    """Pre-trained with or without its decoder, fine-tuned, or the wrapper of a distilled one.

    Args:
        weights: the file's tensors.
        teacher_layers: the teacher's block that each adapter predicts, counted from 1, in the order of the student's;
            default the teacher's last, as in the study.

    Raises:
        UserError: on unknown tensors.
    """
    layers = sorted(int(found[1]) for key in weights if (found := _ADAPTER.fullmatch(key)))
    taught = dict(zip(layers, teacher_layers or (_depth(weights, "tch_model."),) * len(layers), strict=True))
    wrapped = any(key.startswith(("model.", "tch_model.")) for key in weights)

    def rule(key: str) -> Move | Drop | None:
        if not wrapped:
            return hiera_step(key)
        adapter = _ADAPTER.fullmatch(key)
        if adapter:
            # The study counts the layers from 0.
            number = int(adapter[1])
            return Move(f"decoders.attention_{number + 1}_{taught[number]}.mix.weight", _CONVOLUTION)
        if key.startswith("tch_model."):
            return Drop("the frozen teacher")
        return hiera_step(key.removeprefix("model.")) if key.startswith("model.") else None

    return make_plan(weights, rule, "hiera")


def hiera_step(key: str) -> Move | None:
    """The step of one tensor of an encoder, its decoder or its classifier; None for any other."""
    if _SAME.fullmatch(key):
        return Move(ENCODER + key)
    norm = _NORM.match(key)
    if norm:
        return Move(f"{ENCODER}head.norm.{key[norm.end() :]}")
    for pattern, ours in _PIXEL:
        found = pattern.match(key)
        if found:
            return Move(f"decoders.pixel.{ours}{key[found.end() :]}")
    head = key.removeprefix("head.projection.")
    return Move(f"{CLASSIFIER}head.fc.{head}") if head != key else None


def hiera_from_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The encoder of a published file, and its classifier if there is one, under timm's names; and what stays behind.

    Args:
        state: tensors under the published names.

    Returns:
        Tensors that timm's `Hiera` loads, and the reason for each other key.

    Raises:
        UserError: on unknown tensors.
    """
    plan = plan_hiera(state)
    kept = {
        name.removeprefix(prefix): value
        for name, value in plan.state(state).items()
        for prefix in (ENCODER, CLASSIFIER)
        if name.startswith(prefix)
    }
    dropped = {}
    for key, step in plan.steps.items():
        if isinstance(step, Drop):
            dropped[key] = step.reason
        elif not step.name.startswith((ENCODER, CLASSIFIER)):
            dropped[key] = "decoder or adapter: pre-training alone"
    return kept, dropped


def teacher_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The wrapper's frozen teacher under its own names."""
    start = "tch_model."
    return {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}


def hiera_sizes(tensors: Mapping[str, Tensor], first_heads: int | None = None) -> HieraConfig:
    """The configuration that an encoder's tensors, under timm's names, imply; as pre-trained (`q_pool` 2).

    Args:
        tensors: of the encoder.
        first_heads: attention heads of the first stage, which no file tells; default what was published at this width
            (2 at 112 and 144, 4 at 256, else 1).

    Raises:
        UserError: a sentence without its subject (the file) if tensors are missing or make no four stages.
    """
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.0.norm1.weight")
    for key in needed:
        if key not in tensors:
            raise UserError(f"holds no {key}, which the encoder needs: a truncated file, or a variant of the family")
    width, _, kernel, _ = tensors["patch_embed.proj.weight"].shape
    starts = [int(found[1]) for key in tensors if (found := re.fullmatch(r"blocks\.(\d+)\.proj\.weight", key))]
    ends = [0, *sorted(starts), _depth(tensors, "")]
    if len(ends) != 5:
        raise UserError(f"widens {len(starts)} times, not three times as four stages do")
    stride = (kernel + 1) // 2
    return HieraConfig(
        embed_dim=width,
        first_heads=first_heads or {112: 2, 144: 2, 256: 4}.get(width, 1),
        stages=tuple(last - first for first, last in pairwise(ends)),  # pyright: ignore[reportArgumentType]
        patch_stride=stride,
        patch_kernel=kernel,
        image_size=math.isqrt(tensors["pos_embed"].shape[1]) * stride,
        mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
    )


def _depth(weights: Mapping[str, Tensor], prefix: str) -> int:
    numbers = [int(found[2]) for key in weights if (found := _BLOCK.match(key)) and found[1] == prefix]
    return 1 + max(numbers, default=-1)
