"""Quantization-aware fine-tuning: a model that computes as INT8 would learns to answer as its FP32 original does.

Distillation without labels: the divergence of the student's classes from the original's (of every pixel, in segmentation),
and the squared error of the logits beside it, since classes do not see what all logits share.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemim.config import Config
from edgemim.data.order import steps_per_epoch
from edgemim.errors import Interrupted, SavedOnSignal, UserError
from edgemim.export.fake_quantization import fake_quantized, plain_state, ranges
from edgemim.export.smoothquant import smooth
from edgemim.export.training_images import TrainingImages
from edgemim.models.normalization import Normalization
from edgemim.tasks.task import Task
from edgemim.training.distributed import World, open_world
from edgemim.training.objective import Objective, StepOutput
from edgemim.training.recipe import Plan, TrainingConfig
from edgemim.training.session import loader_arguments, open_run, run_training

_RANGE_RATE = 10.0
"""The rate of the ranges over that of the weights: theirs is a share of the range, that of weights an amount."""
_BETAS = (0.9, 0.999)


class AwareConfig(Config):
    """How a model is fine-tuned for INT8."""

    epochs: float = pydantic.Field(default=0.0, ge=0)
    """Passes over the run's training images, learning to answer as FP32 does where INT8 after training misses the gate in
    quality; 0 does without."""
    lr: float = pydantic.Field(default=3e-4, gt=0)
    """Peak learning rate (AdamW, cosine, a tenth of the steps warm-up)."""
    batch_size: int = pydantic.Field(default=32, ge=1)
    """Images of a step."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of order and crops; with the same seed, images and CPU the file is the same, bit for bit."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int | None = pydantic.Field(default=None, ge=0)
    """Processes that read images; default by the number of cores."""


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning gives.

    Attributes:
        module: the model with weights that bear quantisation, float32, on the CPU.
        student: its fake-quantised form.
        record: what happened, for the manifest.
    """

    module: nn.Module
    student: nn.Module
    record: dict[str, Any]


class QuantizationAware(Objective):
    """A fake-quantised student that learns its teacher's answers to the same images."""

    def __init__(self, teacher: nn.Module, student: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.student = student
        self.normalization = normalization
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple it is no part of the checkpoint

    @property
    def exported(self) -> nn.Module:
        """The student."""
        return self.student

    def train(self, mode: bool = True) -> QuantizationAware:
        """Stays in evaluation mode: batch statistics and drop-path are no more a matter of learning."""
        return super().train(False)

    def forward(self, images: Tensor, keys: Tensor, labels: Tensor) -> StepOutput:
        """Loss of uint8 images [b, 3, s, s]; labels are not looked at."""
        x = self.normalization.apply(images)
        with torch.no_grad():
            expected = self._teacher[0](x)
        found = self.student(x)
        divergence = class_divergence(found, expected)
        error = F.mse_loss(found, expected) / expected.square().mean().clamp(min=1e-12)
        agreement = (found.argmax(1) == expected.argmax(1)).float().mean()
        return StepOutput(divergence + error, {"divergence": divergence, "error": error, "agreement": agreement})


def class_divergence(found: Tensor, expected: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of logits [b, classes, ...] from the expected ones, over images or pixels."""
    told, known = F.log_softmax(found, dim=1), F.log_softmax(expected, dim=1)
    return F.kl_div(told, known, reduction="none", log_target=True).sum(1).mean()


def tune(task: Task, config: AwareConfig, folder: Path, *, calibration: np.ndarray, full_range: bool) -> Tuned:
    """Fine-tune a fake-quantised copy of a task's model; the task's own model is not changed.

    A run that was stopped goes on when it is called with the same task, images and settings; `folder` is gone at the end.

    Args:
        task: classification or segmentation, with its images.
        config: settings; `epochs` above 0.
        folder: for checkpoints and figures meanwhile.
        calibration: normalised training images, float32 [n, 3, s, s].
        full_range: 8-bit weights, else 7-bit ones.

    Raises:
        UserError: the task's images are gone, or it is a tracker.
        ModelRefused: NNCF cannot handle the model.
        SavedOnSignal, Interrupted: after a save on SIGTERM, SIGUSR1 or Ctrl-C.
        NoGpu: if a CUDA device was asked for and none is usable.
    """
    images = TrainingImages.of(task)
    teacher = copy.deepcopy(task.export_module())
    original = _smoothed(teacher, calibration)
    student = fake_quantized(original, [image[None] for image in calibration], full_range=full_range)
    training = _training_config(config, images, _own_folder(folder, config, teacher, calibration, images, full_range))
    plan = Plan.of(training, steps_per_epoch(images.count, training.batch_size))
    with _stopping_is_explained(), open_world(config.device) as world:
        objective = QuantizationAware(teacher, student, task.normalization)
        figures = _train(objective, images, training, plan, world)
    shutil.rmtree(folder, ignore_errors=True)
    record = {**config.model_dump(mode="json"), "train_images": images.count, "steps": plan.total_steps, **figures}
    original.load_state_dict(plain_state(student.cpu(), original))
    return Tuned(original, student, record)


def _smoothed(module: nn.Module, calibration: np.ndarray) -> nn.Module:
    try:
        return smooth(module, (calibration[i : i + 16] for i in range(0, len(calibration), 16)))
    except UserError:  # a model without such norms is quantised as it is
        return copy.deepcopy(module)


def _training_config(config: AwareConfig, images: TrainingImages, folder: Path) -> TrainingConfig:
    size = min(config.batch_size, images.count)
    return TrainingConfig(
        out=folder,
        resume=folder.exists(),
        epochs=config.epochs,
        warmup_epochs=config.epochs / 10,
        batch_size=size,
        base_lr=config.lr * 256 / size,
        weight_decay=0.0,
        betas=_BETAS,
        precision="fp32",
        device=config.device,
        workers=config.workers,
        seed=config.seed,
        checkpoint_minutes=2.0,
    )


def _own_folder(
    folder: Path,
    config: AwareConfig,
    teacher: nn.Module,
    calibration: np.ndarray,
    images: TrainingImages,
    full_range: bool,
) -> Path:
    """A folder named by all that decides the result, so that only the same fine-tuning goes on; others are forgotten."""
    settings = config.model_dump_json(exclude={"device", "workers"})
    digest = hashlib.sha256(f"{settings} {images.fingerprint} {full_range}".encode() + calibration.tobytes())
    for name, tensor in teacher.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    own = folder / digest.hexdigest()[:16]
    for other in folder.glob("*"):
        if other != own:
            shutil.rmtree(other, ignore_errors=True)
    return own


@contextmanager
def _stopping_is_explained() -> Iterator[None]:
    try:
        yield
    except (SavedOnSignal, Interrupted) as error:
        raise type(error)(
            "quantization-aware fine-tuning was stopped, the artifact is as it was; the same command goes on from the last save"
        ) from error


def _train(
    objective: QuantizationAware, images: TrainingImages, config: TrainingConfig, plan: Plan, world: World
) -> dict[str, Any]:
    objective.to(world.device)
    objective._teacher[0].to(world.device)
    arguments = loader_arguments(config, plan, world)
    with open_run("quantize", config, world) as record:
        run_training(
            objective,
            _optimizer(objective.student),
            config,
            plan,
            world,
            record,
            batches=lambda start: images.stream(start_step=start, **arguments),
            data_fingerprint=images.fingerprint,
        )
    figures, last = record.results, record.results["last_metrics"]
    return {
        "train_seconds": figures["train_seconds"],
        "images_per_s": figures["images_per_s"],
        **{f"last_{name}": last[name] for name in ("loss", "divergence", "agreement")},
    }


def _optimizer(student: nn.Module) -> torch.optim.Optimizer:
    widths = [place.log_step for place in ranges(student)]
    known = {id(width) for width in widths}
    weights = [p for p in student.parameters() if id(p) not in known and p.requires_grad]
    groups = [{"params": weights, "lr_scale": 1.0}, {"params": widths, "lr_scale": _RANGE_RATE}]
    return torch.optim.AdamW(groups, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)
