"""The training loop: it knows an objective and batches, and promises exact resume, safe stops and finite weights."""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgemim.errors import EdgemimError, Interrupted, SavedOnSignal, UserError
from edgemim.training.average import MovingAverage
from edgemim.training.best import BestWeights
from edgemim.training.checkpoint import Checkpoint, CheckpointError, CheckpointFolder
from edgemim.training.distributed import World
from edgemim.training.log import MetricsLog, ProgressLine
from edgemim.training.meter import Meter
from edgemim.training.objective import BatchLike, Objective
from edgemim.training.optim import gradient_norm, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from edgemim.training.recipe import Plan, TrainingConfig, changed_settings
from edgemim.training.signals import stopped
from edgemim.training.statistics import RunningStatistics
from edgemim.training.tally import Tally

_FAILED_SAVES = 3
_NONFINITE_IN_A_ROW = 3


@dataclass(frozen=True)
class Outcome:
    """What a training did, for run.json."""

    steps: int
    seconds: float
    images_per_s: float
    data_wait: float
    tally: Tally
    last_metrics: dict[str, float]


EpochHook = Callable[[int, int], dict[str, float]]
"""(finished epochs, step) -> figures to log; runs on the main rank alone, after the epoch's checkpoint.

A hook sees the weights that are trained, an evaluation those that the run hands on: the moving average, if one is kept.
"""


class Trainer:
    """Runs an objective from its newest checkpoint to the end of the plan, or until `best` has had enough."""

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        plan: Plan,
        world: World,
        folder: Path,
        *,
        data_fingerprint: str,
        label: str,
        hooks: Sequence[EpochHook] = (),
        evaluations: Sequence[EpochHook] = (),
        best: BestWeights | None = None,
    ) -> None:
        self.objective, self.optimizer, self.config, self.plan, self.world = objective, optimizer, config, plan, world
        self.folder, self.label, self.hooks, self.evaluations = folder, label, tuple(hooks), tuple(evaluations)
        self.best = best
        self.checkpoints = CheckpointFolder(folder / "checkpoints", config.keep_checkpoints)
        self.settings = {**config.model_dump(mode="json"), "data": data_fingerprint, "world_size": world.size}
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.ema = None if config.ema_decay is None else MovingAverage(objective.exported, config.ema_decay)
        self._statistics = RunningStatistics(objective)
        self.tally = Tally()
        self.figures: dict[str, float] = {}
        self._skipped: list[tuple[str, str]] = []
        self._run_started = self._saved_at = time.monotonic()
        self._saved_step = self._failed_saves = 0

    def restore(self) -> int:
        """Load the newest whole checkpoint; return the step to go on from (0 if there is none).

        Raises:
            UserError: if settings or data changed since, with the differences.
        """
        # Read once and handed round: ranks that each chose the newest whole one might choose differently.
        checkpoint = self.world.on_main(self.checkpoints.load_latest)
        if checkpoint is None:
            return 0
        changes = changed_settings(checkpoint.state["settings"], self.settings)
        if changes and not self.config.allow_change:
            raise UserError(f"cannot resume {self.folder}: {'; '.join(changes)}; undo that or give --allow-change")
        try:
            self.objective.load_state_dict(checkpoint.tensors["model"])
            load_optimizer_tensors(self.optimizer, self.objective, checkpoint.tensors["optimizer"])
            if self.ema is not None and "ema" in checkpoint.tensors:
                self.ema.load_state_dict(checkpoint.tensors["ema"])
            if self.best is not None and "best" in checkpoint.state:
                self.best.restore(checkpoint.state["best"], checkpoint.tensors.get("best", {}))
        except (RuntimeError, KeyError) as error:
            raise UserError(
                f"cannot resume {self.folder}: its weights do not fit this model ({'; '.join(changes)}); "
                "undo that, or start in another folder"
            ) from error
        self.tally = Tally(**checkpoint.state["tally"])
        self.figures = checkpoint.state.get("figures", {})
        return checkpoint.step

    def run(self, batches: Iterable[BatchLike], start_step: int) -> Outcome:
        """Train from `start_step` to the end; `batches` begins there and yields `accumulate` parts a step.

        Raises:
            SavedOnSignal, Interrupted: after a save, on SIGTERM or SIGUSR1, and on Ctrl-C.
            EdgemimError: three steps in a row without a finite gradient, or too many unreadable images.
        """
        log = MetricsLog(self.folder, resume_step=start_step, enabled=self.world.is_main)
        progress = ProgressLine(self.plan.total_steps, start_step, label=self.label, enabled=self.world.is_main)
        # A signal is only noted in here: a step that has begun is ended, and saved.
        stream = iter(batches)
        with self.world.stop.noting():
            try:
                return self._loop(stream, start_step, log, progress)
            finally:
                if isinstance(stream, Generator):  # its workers read ahead of a run that ends early
                    stream.close()
                progress.close()
                log.close()

    def _loop(self, batches: Iterator[BatchLike], start: int, log: MetricsLog, progress: ProgressLine) -> Outcome:
        model = self.wrap()
        meter = Meter(self.world.device)
        self._saved_step, self._saved_at = start, time.monotonic()
        done = start
        if self._owes_hooks(start):
            self._call_hooks(start, log)
        model.train()
        enough = self._has_enough()
        while done < self.plan.total_steps and not enough:
            self.step(model, batches, done, meter)
            done += 1
            if done % self.config.log_every == 0 or done == self.plan.total_steps:
                self.figures = self._report(meter, done, log, progress)
            self._keep(done)
            if self._ends_epoch(done):
                self._call_hooks(done, log)
                model.train()
                enough = self._has_enough()
        if self._saved_step != done:
            self._save(done, must=True)
        return self._outcome(meter, done)

    def _ends_epoch(self, done: int) -> bool:
        return done % self.plan.steps_per_epoch == 0 or done == self.plan.total_steps

    def _owes_hooks(self, start: int) -> bool:
        """Whether a run that goes on was stopped between a save and what follows it, and lacks that."""
        unmeasured = self.best is not None and self.best.measured_at < start and self._ends_epoch(start)
        return start == self.plan.total_steps or (start > 0 and unmeasured)

    def _has_enough(self) -> bool:
        return self.best is not None and self.world.any(self.best.exhausted)

    def _keep(self, done: int) -> None:
        """At the boundary after `done` steps: agree on what is due, share what was unreadable, save, leave if asked to."""
        minutes = (time.monotonic() - self._saved_at) / 60
        by_clock = self.world.is_main and minutes >= self.config.checkpoint_minutes
        stopping, due, unreadable = self.world.any_of(self._asked_to_stop, by_clock, bool(self._skipped))
        if unreadable:
            self.tally.share(self._skipped, self.world)
            self._skipped = []
        self.tally.check(self.config.max_unreadable, self.plan.steps_per_epoch * self.config.batch_size)
        checkpoint_steps = max(1, round(self.config.checkpoint_epochs * self.plan.steps_per_epoch))
        must = stopping or done == self.plan.total_steps
        if must or due or done % checkpoint_steps == 0:
            self._save(done, must=must)
        if stopping:
            self._leave()

    @property
    def _asked_to_stop(self) -> bool:
        return self.world.stop.received is not None

    def step(self, model: nn.Module, batches: Iterator[BatchLike], step: int, meter: Meter) -> None:
        """One optimizer step, number `step` of the run; figures stay on the device, in the meter."""
        set_learning_rate(self.optimizer, self.config.learning_rate(step, self.plan))
        dtype = self.config.autocast_dtype(self.world.device)
        parts = self.config.accumulate
        losses: dict[str, Tensor] = {}
        self.objective.begin_step(step / self.plan.total_steps)
        self._statistics.remember()
        for part in range(parts):
            # What draws inside the model (drop-path, mixup) depends on these numbers alone: no generator to save.
            torch.manual_seed(_mix(self.config.seed, step, self.world.rank, part))
            batch = meter.wait_for(batches)
            self.tally.seen += len(batch.keys) * self.world.size
            self._skipped += batch.skipped
            batch = batch.to(self.world.device)
            last = part == parts - 1
            alone = isinstance(model, DistributedDataParallel) and not last
            with model.no_sync() if alone else nullcontext():  # pyright: ignore[reportCallIssue]
                with torch.autocast(self.world.device.type, dtype=dtype, enabled=dtype is not None):
                    output = model(batch.images, batch.keys, batch.labels)
                (output.loss / parts).backward()
            for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
                losses[name] = losses.get(name, 0) + value.detach() / parts
        self._update(losses, meter)
        meter.images += self.config.batch_size

    def _update(self, losses: dict[str, Tensor], meter: Meter) -> None:
        norm = gradient_norm(self.parameters)
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_grad, norm)
        # The fused kernel leaves weights and moments alone where found_inf is 1: no host synchronisation is needed.
        bad = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = bad  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.take_back(bad)  # batch norm took the bad activations in already while it ran
        if self.ema is not None:
            self.ema.update(self.objective.exported, bad)
        meter.add({**losses, "grad_norm": norm}, bad)

    def _report(self, meter: Meter, done: int, log: MetricsLog, progress: ProgressLine) -> dict[str, float]:
        figures, worst = meter.read(self.world)
        self.tally.nonfinite_steps += int(figures.pop("nonfinite_steps"))
        figures["lr"] = self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"]
        figures["epoch"] = done / self.plan.steps_per_epoch
        log.write(done, figures)
        progress.update(
            done,
            f"loss {figures['loss']:.4f}  {figures['images_per_s']:.0f} images/s  data-wait {figures['data_wait']:.0%}",
        )
        if worst >= _NONFINITE_IN_A_ROW:
            raise EdgemimError(
                f"the gradient was not finite in {worst} steps in a row before step {done}; no weight was touched by them. "
                "Lower --base-lr, set --clip-grad, or give --precision fp32"
            )
        return figures

    def _save(self, step: int, *, must: bool) -> None:
        self._saved_at = time.monotonic()
        try:
            self.world.on_main(lambda: self._write(step))
            self._saved_step, self._failed_saves = step, 0
        except CheckpointError as error:
            self._failed_saves += 1
            if must or self._failed_saves >= _FAILED_SAVES:
                raise
            if self.world.is_main:
                print(f"warning: {error}; training goes on until the next save", file=sys.stderr, flush=True)

    def _write(self, step: int) -> None:
        self.tally.seconds += time.monotonic() - self._run_started
        self._run_started = time.monotonic()
        tensors = {
            "model": self.objective.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.objective),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        state: dict[str, Any] = {"settings": self.settings, "tally": vars(self.tally), "figures": self.figures}
        if self.best is not None:
            state["best"] = self.best.facts()
            tensors |= {"best": self.best.weights} if self.best.weights else {}
        self.checkpoints.save(Checkpoint(step, tensors, state))

    def _leave(self) -> None:
        message = (
            f"saved at step {self._saved_step} of {self.plan.total_steps} in {self.folder}; "
            f"to go on, give the same command with --out {self.folder} --resume"
        )
        raise stopped(message, interrupted=self.world.any(self.world.stop.received == signal.SIGINT))

    def _call_hooks(self, done: int, log: MetricsLog) -> None:
        if self.world.is_main:
            self.objective.eval()
            try:
                # Weights rest meanwhile: a signal cuts the hook short, however long it would take.
                with self.world.stop.raising(True):
                    self._run_hooks(self.hooks, done, log)
                    with nullcontext() if self.ema is None else self.ema.standing_in(self.objective.exported):
                        self._run_hooks(self.evaluations, done, log)
            except (SavedOnSignal, Interrupted):
                if not self._asked_to_stop:
                    raise
        if self.world.any(self._asked_to_stop):
            if self._saved_step != done:
                self._save(done, must=True)
            self._leave()

    def _run_hooks(self, hooks: Sequence[EpochHook], done: int, log: MetricsLog) -> None:
        for hook in hooks:
            try:
                figures = hook(done // self.plan.steps_per_epoch, done)
            except OSError as error:  # a picture that finds no room is no reason to stop
                print(f"warning: after step {done}: {error}; training goes on", file=sys.stderr, flush=True)
                continue
            if figures:
                log.write(done, figures)

    def wrap(self) -> nn.Module:
        """The objective as it is called: compiled if asked, and in DDP's care where there are several processes."""
        model: nn.Module = self.objective
        if self.config.compile:
            model = torch.compile(model)  # pyright: ignore[reportAssignmentType]
        if self.world.size > 1:
            device = self.world.device
            model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        return model

    def exported_state(self) -> dict[str, Tensor]:
        """The weights that the run hands on: the best ones where they were kept, else the moving average where one was."""
        if self.best is not None and self.best.weights:
            return self.best.weights
        source = self.objective.exported if self.ema is None else self.ema.module
        return source.state_dict()

    def _outcome(self, meter: Meter, done: int) -> Outcome:
        self.tally.seconds += time.monotonic() - self._run_started
        rate, wait = (self.figures.get(key, 0.0) for key in ("images_per_s", "data_wait"))
        if meter.total_images:  # else all was done before, and the last figures are those of then
            rate, wait = meter.total_images / meter.total_seconds, meter.total_wait / meter.total_seconds
        return Outcome(done, self.tally.seconds, rate, wait, self.tally, self.figures)


def _mix(*numbers: int) -> int:
    """A 63-bit hash of a few integers."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
