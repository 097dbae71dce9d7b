"""The golden case of layer-wise learning rates: parameter groups by name, and the schedule step by step."""

from __future__ import annotations

from typing import Any

from edgemim.models.sizes import RelativeVitConfig, VitConfig
from edgemim.models.weights import bare_vit
from edgemim.training.optim import build_adamw
from edgemim.training.schedule import warmup_cosine
from tests.golden.case import Case, Comparison


def compare(case: Case) -> Comparison:
    """Groups of plain vision transformers and warm-up-cosine schedules; other families are left out by name."""
    result = Comparison(case)
    for group in [*case.facts["groups"], *case.facts["groups_facebook"]]:
        title = f"{group['kind']} depth {group['depth']} decay {group['layer_decay']}"
        if group["kind"].split()[0] in ("vit", "rpe"):
            _groups(result, title, group)
        else:
            result.leave_out(f"groups of {title}", "another family of encoders")
    for schedule in case.facts["lr_schedules"]:
        _schedule(result, schedule)
    return result.finish()


def _groups(result: Comparison, title: str, group: dict[str, Any]) -> None:
    # The study's variant with relative positions has queries and values with a bias, keys without.
    sizes = {"width": 48, "heads": 3, "depth": group["depth"]}
    config = RelativeVitConfig(**sizes, key_bias=False) if group["kind"] == "rpe" else VitConfig(**sizes)
    model = bare_vit(config, num_classes=10)
    optimizer = build_adamw(
        model,
        weight_decay=group["weight_decay"],
        betas=(0.9, 0.999),
        layer_decay=group["layer_decay"],
        no_decay=tuple(model.no_weight_decay()),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for key in ("lr_scale", "weight_decay"):
        ours = {names[id(p)]: part[key] for part in optimizer.param_groups for p in part["params"]}
        expected = {name: entry[key] for name, entry in group["parameters"].items()}
        result.numbers(f"{key}, {title}", ours, expected, floor=result.atol)


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
