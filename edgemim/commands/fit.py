"""The course of a fine-tuning, whatever the task: its optimizer, its evaluations, and the weights that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgemim.errors import UserError
from edgemim.run import RunRecord
from edgemim.tasks.task import Task
from edgemim.training.best import BestWeights
from edgemim.training.distributed import World
from edgemim.training.objective import BatchLike
from edgemim.training.optim import build_adamw, build_sgd
from edgemim.training.recipe import Plan, due
from edgemim.training.session import run_training

if TYPE_CHECKING:
    from edgemim.commands.finetune import FinetuneConfig

_OLD = 0.05
"""Largest share that the weights of the first step may have in the average that a run hands on."""


def fit(
    config: FinetuneConfig,
    task: Task,
    plan: Plan,
    world: World,
    record: RunRecord,
    *,
    batches: Callable[[int], Iterable[BatchLike]],
    data_fingerprint: str,
    evaluate: Callable[[], dict[str, float]],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Train a task; afterwards its model holds, on the main process, the weights that the run hands on.

    Those are the last ones, of the moving average where one is kept; with `keep_best` or `patience` the ones with the
    highest first figure of `evaluate`.

    Args:
        batches: from a start step to the batches of the rest of the run.
        data_fingerprint: names the list of images; a resumed run must see the same.
        evaluate: figures on the held-out images, called on the main process when due; after the last step only to choose the
            best weights, since what the run hands on is measured by its verb.
        optimizer: over the model's parameters, where it is not that of the configuration.
    """
    best = BestWeights(config.patience) if config.keep_best or config.patience is not None else None
    _warn_of_a_slow_average(config, plan, record)

    def after_epoch(epoch: int, step: int) -> dict[str, float]:
        if not (due(epoch, config.evaluate_every) if step < plan.total_steps else best is not None):
            return {}
        figures = evaluate()
        if best is not None:
            best.note(step, next(iter(figures.values())), task.exported.state_dict())
        return {f"val_{name}": value for name, value in figures.items()}

    trainer, outcome = run_training(
        task,
        optimizer or build_optimizer(config, task.model),
        config,
        plan,
        world,
        record,
        batches=batches,
        data_fingerprint=data_fingerprint,
        evaluations=[after_epoch],
        best=best,
    )
    if world.is_main:
        task.model.load_state_dict(trainer.exported_state())
        if best is not None:
            _tell_choice(best, plan, outcome.steps, record)


def build_optimizer(config: FinetuneConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD over the layers of a model, each at its share of the rate."""
    common: dict[str, Any] = {
        "weight_decay": config.weight_decay,
        "layer_decay": config.layer_decay,
        "no_decay": tuple(getattr(model, "no_weight_decay", set)()),
    }
    if config.optimizer == "sgd":
        return build_sgd(model, momentum=config.betas[0], **common)
    return build_adamw(model, betas=config.betas, **common)


def _tell_choice(best: BestWeights, plan: Plan, steps: int, record: RunRecord) -> None:
    """Say, and put into the record, which weights were chosen and whether the run ended early."""
    chosen, last, whole = (number / plan.steps_per_epoch for number in (best.step, steps, plan.total_steps))
    record.results["best"] = {
        "step": best.step,
        "epoch": chosen,
        "figure": best.figure,
        "evaluations": best.measured,
        "stopped_early": steps < plan.total_steps,
        "epochs_trained": last,
    }
    if steps < plan.total_steps:
        print(f"stopped after epoch {last:g} of {whole:g}: {best.unbeaten} evaluations without a gain")
    print(
        f"weights of epoch {chosen:g}, the best of {best.measured} evaluations on the images that they are reported on"
    )


def _warn_of_a_slow_average(config: FinetuneConfig, plan: Plan, record: RunRecord) -> None:
    """A moving average that is longer than the run hands on weights that have hardly learnt."""
    if config.ema_decay is None:
        return
    left = config.ema_decay**plan.total_steps
    if left > _OLD:
        record.warn(
            f"after {plan.total_steps} steps an average with ema_decay {config.ema_decay:g} is still {left:.0%} the weights "
            f"of the first step; a decay of {_OLD ** (1 / plan.total_steps):.3g} suits this length"
        )


def refuse_idle(config: FinetuneConfig, task_name: str, names: Iterable[str]) -> None:
    """An option that the task would ignore in silence is a mistake. Raises UserError."""
    fields: dict[str, Any] = type(config).model_fields
    idle = [name for name in names if getattr(config, name) != fields[name].default]
    if idle:
        listed = ", ".join(f"'{name}'" for name in idle)
        raise UserError(
            f"{listed} would have no effect with --task {task_name}, whose settings are --task.KEY; leave out"
        )
