"""The settings that every training shares, and the plan of steps that follows from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic
import torch

from edgemim.config import Config
from edgemim.training.schedule import warmup_cosine


class TrainingConfig(Config):
    """Settings of the training loop, shared by pre-training and fine-tuning."""

    out: Path | None = None
    """Folder for the run; default runs/VERB-DATE-TIME."""
    resume: bool = False
    """Go on from the newest whole checkpoint in --out."""
    overwrite: bool = False
    """Lose what --out holds."""
    allow_change: bool = False
    """Resume although settings or data changed."""
    epochs: float = pydantic.Field(default=100.0, gt=0)
    """Passes over the images."""
    batch_size: int = pydantic.Field(default=256, ge=1)
    """Images of one optimizer step, over all processes and accumulated parts."""
    accumulate: int = pydantic.Field(default=1, ge=1)
    """Parts that a step is computed in, to fit memory; the result is that of the whole batch (but for statistics that a
    method takes over a part, such as those that standardise a teacher's channels, and MoCo-v3, which compares images
    within a part)."""
    base_lr: float = pydantic.Field(default=1.5e-4, gt=0)
    """Peak learning rate for a batch of 256; scaled linearly with the batch size."""
    min_lr: float = pydantic.Field(default=0.0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = pydantic.Field(default=0.0, ge=0)
    """Epochs of linear warm-up from 0."""
    weight_decay: float = pydantic.Field(default=0.05, ge=0)
    """AdamW's decay of matrices; vectors and biases have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's momenta."""
    clip_grad: float | None = pydantic.Field(default=None, gt=0)
    """Largest norm of the gradient; none by default."""
    ema_decay: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is then what the run hands on; off by default."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 on a GPU that has it, else fp32 (bf16 on a CPU without its instructions is several times slower)."""
    compile: bool = False
    """Compile the model with torch.compile (pays on a GPU and in long runs)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int | None = pydantic.Field(default=None, ge=0)
    """Processes that read images; default by the number of cores. The result does not depend on it."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of everything random."""
    max_unreadable: float = pydantic.Field(default=0.01, ge=0, le=1)
    """Largest share of unreadable images before the run stops."""
    log_every: int = pydantic.Field(default=10, ge=1)
    """Steps between two lines of metrics."""
    checkpoint_minutes: float = pydantic.Field(default=10.0, ge=0)
    """Longest time between two checkpoints; 0 saves after every step."""
    checkpoint_epochs: float = pydantic.Field(default=1.0, gt=0)
    """Epochs between two checkpoints."""
    keep_checkpoints: int = pydantic.Field(default=2, ge=2)
    """Checkpoints kept."""

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.base_lr * self.batch_size / 256

    def learning_rate(self, step: int, plan: Plan) -> float:
        """The rate of a 0-based step of a plan."""
        steps = {"total_steps": plan.total_steps, "warmup_steps": plan.warmup_steps}
        return warmup_cosine(step, **steps, peak=self.peak_lr, final=self.min_lr)

    def reader_processes(self, world_size: int) -> int:
        """Workers of one process: as given, or the cores left beside training, at most 8."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0))
        return max(0, min(8, cores // world_size - 1))

    def autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        """What autocast computes in; None is plain fp32."""
        if self.precision == "bf16":
            return torch.bfloat16
        if self.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16
        return None


# Keys that may differ between a run and its resumption: they change neither the weights nor their order of steps.
FREE_TO_CHANGE = frozenset(
    "out resume overwrite allow_change workers device log_every checkpoint_minutes checkpoint_epochs "
    "keep_checkpoints max_unreadable picture_every knn_every teacher_cache_limit_gib teacher_cache_upfront".split()
)


@dataclass(frozen=True)
class Plan:
    """How many steps there are; position in a run is one integer, the step."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    @staticmethod
    def of(config: TrainingConfig, steps_per_epoch: int) -> Plan:
        """The plan of a configuration for data that fill `steps_per_epoch` batches a pass."""
        total = max(1, round(config.epochs * steps_per_epoch))
        return Plan(steps_per_epoch, total, min(round(config.warmup_epochs * steps_per_epoch), total - 1))


def due(epoch: int, every: float) -> bool:
    """Whether what happens every so many epochs (rounded, at least one) happens after `epoch`; 0 is never."""
    return every > 0 and epoch % max(1, round(every)) == 0


def changed_settings(before: dict[str, object], now: dict[str, object]) -> list[str]:
    """Differences between two dumped configurations that would change the result, as 'key.of.it: old -> new'."""
    old, new = _flat(before), _flat(now)
    keys = sorted(key for key in old.keys() | new.keys() if key.partition(".")[0] not in FREE_TO_CHANGE)
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _flat(settings: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dotted keys: one changed number is not lost among those that are the same."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
