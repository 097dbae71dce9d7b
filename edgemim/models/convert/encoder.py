"""From a published checkpoint's tensors to an encoder and, where the file has one, its classifier."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pydantic
import torch
from torch import Tensor

from edgemim.config import describe
from edgemim.errors import UserError
from edgemim.models.build import build_encoder
from edgemim.models.convert.detect import check_family
from edgemim.models.convert.hiera import hiera_sizes
from edgemim.models.convert.plan import CLASSIFIER, ENCODER, Drop, Plan, swap_halves
from edgemim.models.encoder import Encoder
from edgemim.models.position import sincos_positions
from edgemim.models.sizes import HieraConfig, RelativeVitConfig, VitConfig
from edgemim.models.weights import load_weights


@dataclass(frozen=True)
class Family:
    """A kind of published checkpoint.

    Attributes:
        plan: what becomes of its tensors.
        heads: attention heads (of a hierarchical network, in its first stage) by width, which no file stores; None where
            the authors published no such width.
        hierarchical: whether its encoder is a `Hiera`.
    """

    name: str
    plan: Callable[[Mapping[str, Tensor]], Plan]
    heads: Callable[[int], int | None]
    hierarchical: bool = False


@dataclass(frozen=True)
class KeyFate:
    """What became of one tensor of the file: its name here, or None, and the reason or the layout.

    Attributes:
        head: its name in the classifier, if it is part of one.
    """

    key: str
    shape: tuple[int, ...]
    becomes: str | None
    note: str
    head: str | None = None


@dataclass(frozen=True)
class Converted:
    """An encoder with published weights, its classifier's tensors if the file has some, and where everything went."""

    family: Family
    encoder: Encoder
    classifier: dict[str, Tensor]
    fates: tuple[KeyFate, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...]

    def fates_with_head(self) -> tuple[KeyFate, ...]:
        """What became of each tensor where the classifier is kept."""
        return tuple(replace(fate, becomes=fate.head, note="") if fate.head else fate for fate in self.fates)


def convert_weights(family: Family, weights: Mapping[str, Tensor], heads: int | None = None) -> Converted:
    """Convert a checkpoint's tensors, every one accounted for.

    Args:
        family: whose they are.
        weights: the file's tensors under their original names.
        heads: attention heads; default the family's for this width.

    Raises:
        UserError: a sentence without its subject (the file) on another family's tensors, unknown or missing ones, or
            sizes that make no encoder.
    """
    check_family(weights, family.name)
    _check_finite(weights)
    plan = family.plan(weights)
    tensors = {key: value.float() for key, value in plan.state(weights, ENCODER).items()}
    config, notes = (_hierarchical_sizes if family.hierarchical else infer_sizes)(tensors, family, heads)
    encoder = build_encoder(config)
    classifier = {key: value.float() for key, value in plan.state(weights, CLASSIFIER).items()}
    # A network that was fine-tuned on pooled tokens has no norm of its tokens: it stays the identity's scale and shift.
    pooled = "fc_norm.weight" in classifier
    report = load_weights(encoder.vit, tensors, may_miss=("norm.",) if pooled else ())
    if report.new:
        notes.append("the file has no norm of the tokens (it was fine-tuned on their mean): ones and zeros")
    if isinstance(config, VitConfig) and "pos_embed" in tensors:
        notes.append(f"position table: {describe_positions(tensors['pos_embed'], config)}")
    fates = tuple(_fate(plan, key, value) for key, value in weights.items())
    return Converted(family, encoder.eval(), classifier, fates, report.new, tuple(notes))


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
        raise UserError(f"holds numbers that are not finite (in {', '.join(broken[:4])}{more}): a damaged file")


def infer_sizes(tensors: Mapping[str, Tensor], family: Family, heads: int | None) -> tuple[VitConfig, list[str]]:
    """The configuration that an encoder's tensors imply, and sentences on what they do not tell. Raises UserError."""
    for key in ("cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if key not in tensors:
            raise UserError(f"holds no {key}, which the encoder needs: a truncated file, or a variant of the family")
    width = tensors["cls_token"].shape[-1]
    _, channels, patch, columns = tensors["patch_embed.proj.weight"].shape
    if channels != 3 or patch != columns:
        raise UserError(f"has patches of {channels} x {patch} x {columns}; the encoder reads square ones of 3 channels")
    relative = _relative(tensors)
    table = relative.pop("table", None)
    known = table.shape[-1] if table is not None else None
    chosen, note = _choose_heads(width, family, heads, known)
    sizes = {
        "width": width,
        "depth": len({found[1] for key in tensors if (found := re.match(r"blocks\.(\d+)\.", key))}),
        "heads": chosen,
        "patch_size": patch,
        "image_size": patch * _grid_side(tensors, table),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }
    kind = VitConfig if table is None else RelativeVitConfig
    try:
        return kind.model_validate({**sizes, **relative}), [note]
    except pydantic.ValidationError as error:
        raise UserError(f"makes no encoder: {describe(error, kind)}") from error


def _hierarchical_sizes(
    tensors: Mapping[str, Tensor], family: Family, heads: int | None
) -> tuple[HieraConfig, list[str]]:
    width = tensors["patch_embed.proj.weight"].shape[0] if "patch_embed.proj.weight" in tensors else 0
    chosen, note = _choose_heads(width, family, heads, None)
    try:
        return hiera_sizes(tensors, chosen), [note]
    except pydantic.ValidationError as error:
        raise UserError(f"makes no encoder: {describe(error, HieraConfig)}") from error


def _relative(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What of a relative encoder's configuration its tensors tell, with one of its tables; empty for a plain one."""
    shared = tensors.get("rel_pos_bias.relative_position_bias_table")
    block = tensors.get("blocks.0.attn.relative_position_bias_table")
    if shared is None and block is None:
        return {}
    scale = tensors.get("blocks.0.gamma_1")
    return {
        "table": block if shared is None else shared,
        "offsets": "both" if shared is not None and block is not None else "block" if shared is None else "shared",
        "absolute_positions": "pos_embed" in tensors,
        "key_bias": "blocks.0.attn.qkv.bias" in tensors,
        # The scale that training began with is not stored; it is overwritten with the file's.
        "layer_scale": None if scale is None else 0.1,
    }


def _grid_side(tensors: Mapping[str, Tensor], table: Tensor | None) -> int:
    """Patches along a side, from the rows of a position table: the class token's and n n, or (2 n - 1)^2 + 3 offsets."""
    if "pos_embed" in tensors:
        rows = tensors["pos_embed"].shape[-2]
        side = math.isqrt(max(rows - 1, 0))
        square = side * side + 1
    elif table is not None:
        rows = table.shape[0]
        side = (math.isqrt(max(rows - 3, 0)) + 1) // 2
        square = (2 * side - 1) ** 2 + 3
    else:
        raise UserError("holds no position table; the encoder needs one")
    if rows != square or side < 1:
        raise UserError(f"has {rows} rows in its position table, not those of a square grid and one class token")
    return side


def _choose_heads(width: int, family: Family, heads: int | None, known: int | None) -> tuple[int, str]:
    if known is not None:
        if heads not in (None, known):
            raise UserError(f"has tables of relative positions for {known} heads; leave --heads {heads} out")
        return known, f"heads: {known}, from the table of relative positions"
    if heads is not None:
        return heads, f"heads: {heads}, as given"
    found = family.heads(width)
    if found is None:
        raise UserError(
            f"is {width} wide, a width that {family.name} did not publish: give --heads N, no file tells it"
        )
    return found, f"heads: {found}, which {family.name} has at width {width} (no file tells it; --heads N for others)"


def describe_positions(table: Tensor, config: VitConfig) -> str:
    """Whether a position table is the fixed sine-cosine one, in either order of its axes, or a learnt one."""
    ours = sincos_positions(config.width, config.grid, prefix=1)
    if torch.allclose(table, ours, atol=1e-5):
        return "sine-cosine, column in the first half of the channels"
    if torch.allclose(table, swap_halves(ours), atol=1e-5):
        return "sine-cosine, row in the first half of the channels (taken over as it is)"
    return "learnt (no sine-cosine table; taken over as it is)"


def _fate(plan: Plan, key: str, value: Tensor) -> KeyFate:
    step, shape = plan.steps[key], tuple(value.shape)
    if isinstance(step, Drop):
        return KeyFate(key, shape, None, step.reason)
    if step.name.startswith(ENCODER):
        return KeyFate(key, shape, step.name.removeprefix(ENCODER), step.layout.name)
    if step.name.startswith(CLASSIFIER):
        name = step.name.removeprefix(CLASSIFIER)
        return KeyFate(key, shape, None, "classifier of the published fine-tuning (--keep-head keeps it)", name)
    return KeyFate(key, shape, None, _pretraining_part(step.name))


def _pretraining_part(name: str) -> str:
    if name.endswith("mask_token"):
        return "mask token: pre-training alone"
    if name.startswith(("decoders.attention", "decoders.hidden")):
        return "adapter or extra block of the distillation: pre-training alone"
    if name.startswith(("projector.", "predictor.", "momentum_")):
        return "momentum encoder, projectors and predictor: pre-training alone"
    return "decoder: pre-training alone"
