"""The training loop: it knows an objective and batches, and promises exact resume, safe stops and finite weights."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgemim.errors import EdgemimError, Interrupted, SavedOnSignal, UserError
from edgemim.training.checkpoint import Checkpoint, CheckpointError, CheckpointFolder
from edgemim.training.distributed import StopSignal, World
from edgemim.training.log import MetricsLog, ProgressLine
from edgemim.training.meter import Meter
from edgemim.training.objective import Objective
from edgemim.training.optim import gradient_norm, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from edgemim.training.recipe import Plan, TrainingConfig, changed_settings
from edgemim.training.schedule import warmup_cosine

_FAILED_SAVES = 3
_NONFINITE_IN_A_ROW = 3
_REASONS = 1000


class BatchLike(Protocol):
    """What the loop needs of a batch."""

    images: Tensor
    labels: Tensor
    keys: Tensor
    skipped: list[tuple[str, str]]

    def to(self, device: torch.device) -> BatchLike:
        """The batch on another device."""
        ...


@dataclass
class Tally:
    """Counts that survive a resume: images drawn, draws that could not be read, why, and steps that were not finite."""

    seen: int = 0
    unreadable: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    nonfinite_steps: int = 0
    seconds: float = 0.0


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
"""(finished epochs, step) -> figures to log; runs on the main rank alone, after the epoch's checkpoint."""


class Trainer:
    """Runs an objective from its newest checkpoint to the end of the plan."""

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
    ) -> None:
        self.objective, self.optimizer, self.config, self.plan, self.world = objective, optimizer, config, plan, world
        self.folder, self.label, self.hooks = folder, label, tuple(hooks)
        self.checkpoints = CheckpointFolder(folder / "checkpoints", config.keep_checkpoints)
        self.settings = {**config.model_dump(mode="json"), "data": data_fingerprint, "world_size": world.size}
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.ema = self._build_ema()
        self.tally = Tally()
        self._skipped: list[tuple[str, str]] = []
        self._run_started = time.monotonic()
        self._failed_saves = 0

    def restore(self) -> int:
        """Load the newest whole checkpoint; return the step to go on from (0 if there is none).

        Raises:
            UserError: if settings or data changed since, with the differences.
        """
        checkpoint = self.checkpoints.load_latest()
        if checkpoint is None:
            return 0
        changes = changed_settings(checkpoint.state["settings"], self.settings)
        if changes and not self.config.allow_change:
            raise UserError(f"cannot resume {self.folder}: {'; '.join(changes)}; undo that or give --allow-change")
        self.objective.load_state_dict(checkpoint.tensors["model"])
        load_optimizer_tensors(self.optimizer, self.objective, checkpoint.tensors["optimizer"])
        if self.ema is not None and "ema" in checkpoint.tensors:
            self.ema.load_state_dict(checkpoint.tensors["ema"])
        self.tally = Tally(**checkpoint.state["tally"])
        return checkpoint.step

    def run(self, batches: Iterable[BatchLike], start_step: int) -> Outcome:
        """Train from `start_step` to the end; `batches` begins there and yields `accumulate` parts a step.

        Raises:
            SavedOnSignal, Interrupted: after a save, on SIGTERM or SIGUSR1, and on Ctrl-C.
            EdgemimError: three steps in a row without a finite gradient, or too many unreadable images.
        """
        log = MetricsLog(self.folder, resume_step=start_step, enabled=self.world.is_main)
        progress = ProgressLine(self.plan.total_steps, start_step, label=self.label, enabled=self.world.is_main)
        with StopSignal() as stop:
            try:
                return self._loop(iter(batches), start_step, log, progress, stop)
            finally:
                progress.close()
                log.close()

    def _loop(
        self, batches: Iterator[BatchLike], start: int, log: MetricsLog, progress: ProgressLine, stop: StopSignal
    ) -> Outcome:
        model = self.wrap()
        meter = Meter(self.world.device)
        last_saved, saved_at = start, time.monotonic()
        figures: dict[str, float] = {}
        checkpoint_steps = max(1, round(self.config.checkpoint_epochs * self.plan.steps_per_epoch))
        model.train()
        for step in range(start, self.plan.total_steps):
            self.step(model, batches, step, meter)
            done = step + 1
            if done % self.config.log_every == 0 or done == self.plan.total_steps:
                figures = self._report(meter, done, log, progress)
            stopping = self.world.any(stop.received is not None)
            due = time.monotonic() - saved_at >= 60 * self.config.checkpoint_minutes or done % checkpoint_steps == 0
            if due or stopping or done == self.plan.total_steps:
                self._save(done, must=stopping or done == self.plan.total_steps)
                last_saved, saved_at = done, time.monotonic()
            if stopping:
                self._leave(stop, last_saved)
            if done % self.plan.steps_per_epoch == 0 or done == self.plan.total_steps:
                self._call_hooks(done, log)
                model.train()
        return self._outcome(meter, figures)

    def step(self, model: nn.Module, batches: Iterator[BatchLike], step: int, meter: Meter) -> None:
        """One optimizer step, number `step` of the run; figures stay on the device, in the meter."""
        rate = warmup_cosine(
            step,
            total_steps=self.plan.total_steps,
            warmup_steps=self.plan.warmup_steps,
            peak=self.config.peak_lr,
            final=self.config.min_lr,
        )
        set_learning_rate(self.optimizer, rate)
        dtype = self.config.autocast_dtype(self.world.device)
        parts = self.config.accumulate
        losses: dict[str, Tensor] = {}
        for part in range(parts):
            # What draws inside the model (drop-path, mixup) depends on these numbers alone: no generator to save.
            torch.manual_seed(_mix(self.config.seed, step, self.world.rank, part))
            batch = meter.wait_for(batches)
            self._count(batch)
            batch = batch.to(self.world.device)
            last = part == parts - 1
            alone = isinstance(model, DistributedDataParallel) and not last
            with model.no_sync() if alone else nullcontext():  # pyright: ignore[reportCallIssue]
                with torch.autocast(self.world.device.type, dtype=dtype, enabled=dtype is not None):
                    output = model(batch.images, batch.keys, batch.labels)
                (output.loss / parts).backward()
            for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
                losses[name] = losses.get(name, 0) + value / parts
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
        if self.ema is not None:
            self.ema.update_parameters(self.objective.exported)
        meter.add({**losses, "grad_norm": norm}, bad)

    def _count(self, batch: BatchLike) -> None:
        self.tally.seen += len(batch.images) * self.world.size
        self._skipped += batch.skipped

    def _tally_skipped(self) -> None:
        """Share what each rank could not read, so that every rank judges and saves the same counts."""
        for part in self.world.gather(self._skipped):
            self.tally.unreadable += len(part)
            for path, reason in part:
                if len(self.tally.reasons) < _REASONS:
                    self.tally.reasons[path] = reason
        self._skipped = []

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
        self._check_unreadable()
        return figures

    def _check_unreadable(self) -> None:
        self._tally_skipped()
        # Judged on a fair sample: a whole pass, or a thousand draws of a larger set.
        enough = min(1000, self.plan.steps_per_epoch * self.config.batch_size)
        share = self.tally.unreadable / max(self.tally.seen, 1)
        if self.tally.seen >= enough and share > self.config.max_unreadable:
            path, reason = next(iter(self.tally.reasons.items()))
            raise UserError(
                f"{share:.1%} of the images cannot be read (limit {self.config.max_unreadable:.1%}), such as {path}: {reason}; "
                "run `edgemim data check`, mend the data, or raise --max-unreadable"
            )

    def _save(self, step: int, *, must: bool) -> None:
        if self.world.size == 1:  # saves by the clock are the main rank's alone: nothing to share then
            self._tally_skipped()
        if not self.world.is_main:
            return
        self.tally.seconds += time.monotonic() - self._run_started
        self._run_started = time.monotonic()
        tensors = {
            "model": self.objective.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.objective),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        state: dict[str, Any] = {"settings": self.settings, "tally": vars(self.tally)}
        try:
            self.checkpoints.save(Checkpoint(step, tensors, state))
            self._failed_saves = 0
        except CheckpointError as error:
            self._failed_saves += 1
            if must or self._failed_saves >= _FAILED_SAVES:
                raise
            print(f"warning: {error}; training goes on until the next save", flush=True)

    def _leave(self, stop: StopSignal, step: int) -> None:
        message = (
            f"saved at step {step} of {self.plan.total_steps} in {self.folder}; give the same command with --resume"
        )
        interrupted = self.world.any(stop.received == signal.SIGINT)
        raise Interrupted(message) if interrupted else SavedOnSignal(message)

    def _call_hooks(self, done: int, log: MetricsLog) -> None:
        if self.world.is_main:
            self.objective.eval()
            for hook in self.hooks:
                figures = hook(done // self.plan.steps_per_epoch, done)
                if figures:
                    log.write(done, figures)
        self.world.barrier()

    def wrap(self) -> nn.Module:
        """The objective as it is called: compiled if asked, and in DDP's care where there are several processes."""
        model: nn.Module = self.objective
        if self.config.compile:
            model = torch.compile(model)  # pyright: ignore[reportAssignmentType]
        if self.world.size > 1:
            device = self.world.device
            model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        return model

    def _build_ema(self) -> AveragedModel | None:
        if self.config.ema_decay is None:
            return None
        return AveragedModel(self.objective.exported, multi_avg_fn=get_ema_multi_avg_fn(self.config.ema_decay))

    def exported_state(self) -> dict[str, Tensor]:
        """The weights that the run hands on: the moving average where one was kept."""
        source = self.objective.exported if self.ema is None else self.ema.module
        return source.state_dict()

    def _outcome(self, meter: Meter, figures: dict[str, float]) -> Outcome:
        self.tally.seconds += time.monotonic() - self._run_started
        rate = meter.total_images / max(meter.total_seconds, 1e-9)
        wait = meter.total_wait / max(meter.total_seconds, 1e-9)
        return Outcome(self.plan.total_steps, self.tally.seconds, rate, wait, self.tally, figures)


def _mix(*numbers: int) -> int:
    """A 63-bit hash of a few integers."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
