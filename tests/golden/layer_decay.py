"""The golden case of layer-wise learning rates: parameter groups by name, and the schedule step by step; what a network
has (offsets, biases, norms) is read from the names of its parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from edgemim.models.convert.hiera import plan_hiera
from edgemim.models.convert.plan import CLASSIFIER, ENCODER
from edgemim.models.hiera import bare_hiera
from edgemim.models.sizes import HieraConfig, RelativeVitConfig, VitConfig
from edgemim.models.weights import bare_vit
from edgemim.training.optim import build_adamw
from edgemim.training.schedule import warmup_cosine
from tests.golden.case import Case, Comparison, NotCovered


def compare(case: Case) -> Comparison:
    """Groups of each family's network, and warm-up-cosine schedules."""
    result = Comparison(case)
    for group in [*case.facts["groups"], *case.facts["groups_facebook"]]:
        title = f"{group['kind']} depth {group['depth']} decay {group['layer_decay']}"
        _groups(result, title, group)
    for schedule in case.facts["lr_schedules"]:
        _schedule(result, schedule)
    return result.finish()


def _groups(result: Comparison, title: str, group: dict[str, Any]) -> None:
    family = group["kind"].split()[0]
    theirs = group["parameters"].keys()
    model: Any = _hierarchical(group["depth"]) if family == "hiera" else _plain(family, group["depth"], theirs)
    optimizer = build_adamw(
        model,
        weight_decay=group["weight_decay"],
        betas=(0.9, 0.999),
        layer_decay=group["layer_decay"],
        no_decay=tuple(model.no_weight_decay()),
    )
    published = _published_hiera(theirs) if family == "hiera" else {}
    names = {id(parameter): published.get(name, name) for name, parameter in model.named_parameters()}
    for key in ("lr_scale", "weight_decay"):
        ours = {names[id(p)]: part[key] for part in optimizer.param_groups for p in part["params"]}
        expected = {name: entry[key] for name, entry in group["parameters"].items()}
        result.numbers(f"{key}, {title}", ours, expected, floor=result.atol)


def _plain(family: str, depth: int, theirs: Collection[str]) -> nn.Module:
    sizes: dict[str, Any] = {"width": 48, "heads": 3, "depth": depth}
    if family == "rpe":
        own = "blocks.0.attn.relative_position_bias_table" in theirs
        shared = "rel_pos_bias.relative_position_bias_table" in theirs
        config: VitConfig = RelativeVitConfig(
            **sizes,
            offsets="both" if own and shared else "shared" if shared else "block",
            absolute_positions="pos_embed" in theirs,
            key_bias="blocks.0.attn.qkv.bias" in theirs,
            layer_scale=0.1 if "blocks.0.gamma_1" in theirs else None,
        )
    elif family == "vit":
        config = VitConfig(**sizes)
    else:
        raise NotCovered(f"parameter groups of family {family}")
    return bare_vit(config, num_classes=10, global_pool="avg" if "fc_norm.weight" in theirs else "token")


def _hierarchical(stages: list[int]) -> nn.Module:
    sizes = {"embed_dim": 8, "stages": tuple(stages), "q_pool": 3, "patch_stride": 2, "patch_kernel": 3}
    return bare_hiera(HieraConfig.model_validate({**sizes, "image_size": 32}), num_classes=10)


def _published_hiera(theirs: Collection[str]) -> dict[str, str]:
    """timm's names of a classifier's parameters to the published ones."""
    moves = plan_hiera(dict.fromkeys(theirs, torch.empty(0))).moves
    return {move.name.removeprefix(ENCODER).removeprefix(CLASSIFIER): key for key, move in moves.items()}


def _schedule(result: Comparison, schedule: dict[str, Any]) -> None:
    if schedule["warmup_lr_start"]:
        result.leave_out(f"schedule {schedule['name']}", f"our warm-up starts at 0, not {schedule['warmup_lr_start']}")
        return
    # "warmcos" ignores the group's share of the rate.
    share = schedule["group_lr_scale"] if schedule["name"].endswith("_scale") else 1.0
    ours = {
        str(step): share
        * warmup_cosine(
            step,
            total_steps=schedule["total_steps"],
            warmup_steps=schedule["warmup_steps"],
            peak=schedule["lr"],
            final=schedule["end_lr"],
        )
        for step in range(len(schedule["lr_at_step"]))
    }
    expected = {str(step): rate for step, rate in enumerate(schedule["lr_at_step"])}
    result.numbers(f"schedule {schedule['name']}", ours, expected, floor=result.atol)
