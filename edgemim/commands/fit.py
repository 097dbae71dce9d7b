"""The course of a fine-tuning, whatever the task: its optimizer, its evaluations, and the weights that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from edgemim.errors import UserError
from edgemim.run import RunRecord
from edgemim.tasks.task import Task
from edgemim.training.distributed import World
from edgemim.training.objective import BatchLike
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, due
from edgemim.training.session import run_training

if TYPE_CHECKING:
    from edgemim.commands.finetune import FinetuneConfig


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
) -> None:
    """Train a task; afterwards its model holds, on the main process, the weights that the run hands on.

    Args:
        batches: from a start step to the batches of the rest of the run.
        data_fingerprint: names the list of images; a resumed run must see the same.
        evaluate: figures on the held-out images, called on the main process when due; not after the last step, since what
            the run hands on is measured by its verb.
    """
    no_decay = getattr(task.model, "no_weight_decay", set)()
    optimizer = build_adamw(
        task.model,
        weight_decay=config.weight_decay,
        betas=config.betas,
        layer_decay=config.layer_decay,
        no_decay=tuple(no_decay),
    )

    def after_epoch(epoch: int, step: int) -> dict[str, float]:
        if step == plan.total_steps or not due(epoch, config.evaluate_every):
            return {}
        return {f"val_{name}": value for name, value in evaluate().items()}

    trainer, _ = run_training(
        task,
        optimizer,
        config,
        plan,
        world,
        record,
        batches=batches,
        data_fingerprint=data_fingerprint,
        evaluations=[after_epoch],
    )
    if world.is_main:
        task.model.load_state_dict(trainer.exported_state())


def refuse_idle(config: FinetuneConfig, task_name: str, names: Iterable[str]) -> None:
    """An option that the task would ignore in silence is a mistake. Raises UserError."""
    fields: dict[str, Any] = type(config).model_fields
    idle = [name for name in names if getattr(config, name) != fields[name].default]
    if idle:
        listed = ", ".join(f"'{name}'" for name in idle)
        raise UserError(
            f"{listed} would have no effect with --task {task_name}, whose settings are --task.KEY; leave out"
        )
