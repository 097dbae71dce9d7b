"""Images per second of training on this machine: the training loop's own step, on random images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from edgemim.analysis.cost import labels_for
from edgemim.data.loader import Batch
from edgemim.training.distributed import World
from edgemim.training.loop import Trainer
from edgemim.training.meter import Meter
from edgemim.training.objective import Objective
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, TrainingConfig

_ENDLESS = 10**6
_LEAST = 3


@dataclass(frozen=True)
class Throughput:
    """How fast training went.

    Attributes:
        images_per_s: the median over steps.
        batch_size: images of a step.
        steps: timed ones.
        device: what computed.
        threads: torch's, on a CPU.
    """

    images_per_s: float
    batch_size: int
    steps: int
    device: str
    threads: int


def training_step(
    objective: Objective, config: TrainingConfig, device: torch.device, input_shape: tuple[int, ...]
) -> Callable[[], None]:
    """One optimizer step as the training loop takes it, always on the same random images.

    Args:
        objective: on the device.
        config: its batch_size, accumulate, clip_grad, precision and compile count.
        device: where to compute.
        input_shape: of one image as the objective takes it.
    """
    optimizer = build_adamw(objective, weight_decay=config.weight_decay, betas=config.betas)
    plan = Plan(steps_per_epoch=_ENDLESS, total_steps=_ENDLESS, warmup_steps=0)
    # The trainer writes when it runs as a whole, not in a step.
    trainer = Trainer(
        objective, optimizer, config, plan, World(0, 1, device), Path("unused"), data_fingerprint="", label=""
    )
    model, meter = trainer.wrap().train(), Meter(device)
    count = config.batch_size // config.accumulate
    batches = _random_batches(labels_for(objective, count).to(device), input_shape, device)
    return lambda: trainer.step(model, batches, 0, meter)


def measure(step: Callable[[], None], config: TrainingConfig, device: torch.device, *, seconds: float) -> Throughput:
    """Time steps for about so many seconds, three at least, after two that warm up."""
    for _ in range(2):
        timed(step, 1, device)
    times: list[float] = []
    while len(times) < _LEAST or sum(times) < seconds:
        times.append(timed(step, 1, device))
    rate = config.batch_size / statistics.median(times)
    return Throughput(rate, config.batch_size, len(times), device.type, torch.get_num_threads())


def timed(step: Callable[[], None], count: int, device: torch.device) -> float:
    """Seconds that `count` steps take, the device's work included."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _random_batches(labels: torch.Tensor, input_shape: tuple[int, ...], device: torch.device) -> Iterator[Batch]:
    images = torch.randint(0, 256, (len(labels), *input_shape), dtype=torch.uint8, device=device)
    numbers = torch.arange(len(labels), device=device)
    while True:
        yield Batch(images, labels, numbers, numbers)
