"""What every training verb does around its loop: folder, lock, resume, record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch

from edgemim.errors import UserError
from edgemim.run import FolderLock, RunRecord, default_folder, prepare_folder, write_text
from edgemim.training.best import BestWeights
from edgemim.training.distributed import World, job_name, restarted_by_agent
from edgemim.training.loop import EpochHook, Outcome, Trainer
from edgemim.training.objective import BatchLike, Objective
from edgemim.training.recipe import Plan, TrainingConfig

_JOB = ".job"
"""Names the torchrun job that a run folder belongs to, so that its restarts are known as such."""


def open_run_folder(verb: str, config: TrainingConfig, world: World) -> tuple[Path, FolderLock | None]:
    """The run's folder, locked and checked before the first step; a restart by torchrun's agent resumes by itself.

    Raises:
        UserError: if another run holds the folder, it is not empty, it cannot be written, or none is named where the
            run is to be resumed or has several processes, or if a step cannot be divided evenly.
    """
    if config.out is None and (world.size > 1 or config.resume):
        reason = "when several processes train together" if world.size > 1 else "with --resume: the run to go on with"
        raise UserError(f"give --out FOLDER {reason}")
    parts = world.size * config.accumulate
    if config.batch_size % parts:  # the sampler would say so too, but after the folder is made or emptied
        raise UserError(
            f"batch_size {config.batch_size} does not divide into {world.size} process(es) × {config.accumulate} "
            f"accumulation step(s); use a multiple of {parts}"
        )
    folder = config.out or default_folder(verb)
    held: list[FolderLock] = []

    def take() -> None:
        # Checked before the lock makes the folder, so that a refused path leaves nothing behind.
        if folder.is_file():
            raise UserError(f"{folder} is a file; give --out a folder")
        held.append(FolderLock(folder))
        mine = _own(folder)
        prepare_folder(folder, overwrite=config.overwrite and not mine, resume=config.resume or mine, resumable=True)
        if (job := job_name()) is not None:
            write_text(folder / _JOB, job + "\n")

    try:
        world.on_main(take)
    except UserError:
        for lock in held:
            lock.release()
        raise
    return folder, held[0] if held else None


def _own(folder: Path) -> bool:
    """Whether torchrun's agent started this process again, and the folder is that of the attempt before.

    A restart alone says little: the attempt before may have been refused this very folder.
    """
    try:
        return restarted_by_agent() and (folder / _JOB).read_text().strip() == job_name()
    except OSError:
        return False


def resumes(config: TrainingConfig) -> bool:
    """Whether the run goes on from a checkpoint, where there is one."""
    return config.resume or restarted_by_agent()


def open_record(verb: str, folder: Path, config: TrainingConfig, world: World) -> RunRecord:
    """The run's record; that of a run that goes on is not touched before its checkpoint was accepted."""
    return RunRecord(verb, folder, config, enabled=world.is_main, begin_later=resumes(config))


@contextmanager
def open_run(verb: str, config: TrainingConfig, world: World) -> Iterator[RunRecord]:
    """The record of a run in its folder, which is locked meanwhile. Raises UserError as `open_run_folder` does."""
    folder, lock = open_run_folder(verb, config, world)
    try:
        with open_record(verb, folder, config, world) as record:
            yield record
    finally:
        if lock is not None:
            lock.release()


class LoaderArguments(TypedDict):
    """What every loader of a run's batches is told, beside the data and the step to start from."""

    batch_size: int
    seed: int
    total_steps: int
    rank: int
    world: int
    accumulate: int
    workers: int
    pin_memory: bool


def loader_arguments(config: TrainingConfig, plan: Plan, world: World) -> LoaderArguments:
    """The keywords of `build_loader` and its kin that follow from the run and this process's place in it."""
    return LoaderArguments(
        batch_size=config.batch_size,
        seed=config.seed,
        total_steps=plan.total_steps,
        rank=world.rank,
        world=world.size,
        accumulate=config.accumulate,
        workers=config.reader_processes(world.size),
        pin_memory=world.device.type == "cuda",
    )


def run_training(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    plan: Plan,
    world: World,
    record: RunRecord,
    *,
    batches: Callable[[int], Iterable[BatchLike]],
    data_fingerprint: str,
    hooks: Sequence[EpochHook] = (),
    evaluations: Sequence[EpochHook] = (),
    best: BestWeights | None = None,
) -> tuple[Trainer, Outcome]:
    """Resume if asked, train to the end of the plan, and put the figures into the record whatever happens.

    Args:
        batches: from a start step to the batches of the rest of the run.
        data_fingerprint: names the list of images; a resumed run must see the same.
        best: keeps the best weights among those that an evaluation hands it, and may end the run.
    """
    trainer = Trainer(
        objective,
        optimizer,
        config,
        plan,
        world,
        record.folder,
        data_fingerprint=data_fingerprint,
        label=record.verb,
        hooks=hooks,
        evaluations=evaluations,
        best=best,
    )
    start = trainer.restore() if resumes(config) else 0
    record.begin()
    if resumes(config) and world.is_main:
        found = f"resuming at step {start} of {plan.total_steps}"
        print(found if start else f"no checkpoint in {record.folder} yet: starting at step 0")
    record.results["parameters"] = sum(p.numel() for p in objective.exported.parameters())
    try:
        outcome = trainer.run(batches(start), start)
    finally:
        record.results["images"] = image_counts(trainer)
    record.results.update(
        steps=outcome.steps,
        train_seconds=round(outcome.seconds, 2),
        images_per_s=round(outcome.images_per_s, 1),
        data_wait=round(outcome.data_wait, 4),
        nonfinite_steps=outcome.tally.nonfinite_steps,
        last_metrics=outcome.last_metrics,
    )
    return trainer, outcome


def image_counts(trainer: Trainer) -> dict[str, Any]:
    """How many images were drawn and which could not be read, for run.json."""
    tally = trainer.tally
    files = [{"path": path, "reason": reason} for path, reason in tally.reasons.items()]
    return {"drawn": tally.seen, "unreadable_draws": tally.unreadable, "unreadable_files": files}
