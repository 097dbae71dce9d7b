"""Linear probing: a linear classifier on frozen features, its learning rate chosen on a split of the training images.

Features are standardised channel by channel with the training images' mean and deviation (what MAE's probe does by a batch
norm without gain and bias, arXiv 2111.06377, appendix A, but fixed, so that no batch matters). Then, for each seed, every
rate of a sweep is tried on a part of the training images and judged on the rest; the best is trained again on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.optim import Lars
from torch import Tensor, nn

from edgemim.data.labelled import stratified_split
from edgemim.errors import UserError

OptimizerName = Literal["adamw", "lars"]
RATES: dict[OptimizerName, tuple[float, ...]] = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
    "lars": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
}
_LARGEST_BATCH, _LEAST_BATCH, _STEPS = 256, 16, 8
"""Small sets get smaller batches, so that an epoch has some steps."""


@dataclass(frozen=True)
class ProbeSettings:
    """How linear classifiers are trained.

    Attributes:
        rates: learning rates that are tried.
        epochs: passes over the features.
        share: part of each class that judges the rates.
    """

    optimizer: OptimizerName = "adamw"
    rates: tuple[float, ...] = RATES["adamw"]
    epochs: int = 50
    weight_decay: float = 0.0
    seeds: tuple[int, ...] = (0, 1, 2)
    share: float = 0.2


@dataclass(frozen=True)
class ProbeResult:
    """Top-1 in percent for each seed, the rate that each chose, and what every rate had on the split, mean over seeds."""

    top1: tuple[float, ...]
    rates: tuple[float, ...]
    sweep: dict[float, float]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.top1))

    @property
    def deviation(self) -> float:
        """Sample deviation over seeds; 0 for one."""
        return float(np.std(self.top1, ddof=1)) if len(self.top1) > 1 else 0.0

    @property
    def at_the_edge(self) -> bool:
        """Whether a seed chose the smallest or largest rate, so that the best may lie outside."""
        return len(self.sweep) > 1 and bool({min(self.sweep), max(self.sweep)} & set(self.rates))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        sweep = {f"{rate:g}": top1 for rate, top1 in self.sweep.items()}
        return {
            "top1": self.mean,
            "sd_over_seeds": self.deviation,
            "top1_by_seed": list(self.top1),
            "rate_by_seed": list(self.rates),
            "sweep_top1_on_split": sweep,
        }


def standardise(
    train: Float[Tensor, "n d"], *others: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n d"], list[Float[Tensor, "m d"]]]:
    """Zero mean and unit deviation of each channel over `train`; a channel that is the same everywhere becomes 0."""
    exact = train.double()
    mean, deviation = exact.mean(0), exact.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * exact.abs().amax(0), deviation, torch.inf)
    return ((exact - mean) / scale).float(), [((other.double() - mean) / scale).float() for other in others]


def linear_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    settings: ProbeSettings | None = None,
) -> ProbeResult:
    """Probe frozen features.

    Raises:
        UserError: if a feature is not finite, fewer than two classes have training images, one that is tested has none, or
            there are too few to judge a rate on.
    """
    settings = settings or ProbeSettings()
    _check(train, train_labels, test, test_labels)
    top1, chosen, judged = [], [], []
    for seed in settings.seeds:
        kept, held = (torch.from_numpy(part) for part in stratified_split(train_labels.numpy(), settings.share, seed))
        if not len(held):
            raise UserError(
                f"{len(train)} training images in {len(train_labels.unique())} classes are too few to choose a learning rate "
                "on a part of them; give more images or one rate"
            )
        fitted, (left,) = standardise(train[kept], train[held])
        found = [
            accuracy(_fit(fitted, train_labels[kept], rate, seed, settings), left, train_labels[held])
            for rate in settings.rates
        ]
        judged.append(found)
        # Of equals the smallest rate.
        chosen.append(settings.rates[int(np.argmax(found))])
        fitted, (asked,) = standardise(train, test)
        top1.append(accuracy(_fit(fitted, train_labels, chosen[-1], seed, settings), asked, test_labels))
    sweep = dict(zip(settings.rates, np.mean(judged, axis=0).tolist(), strict=True))
    return ProbeResult(tuple(top1), tuple(chosen), sweep)


def accuracy(classifier: nn.Module, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> float:
    """Top-1 in percent."""
    with torch.no_grad():
        return 100 * float((classifier(features).argmax(1) == labels).float().mean())


def _check(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        raise UserError("features are not finite; the model diverged, or its weights are damaged")
    known = set(train_labels.tolist())
    if len(known) < 2:
        raise UserError("all training images are of one class; a linear probe needs at least two")
    unknown = sorted(set(test_labels.tolist()) - known)
    if unknown:
        raise UserError(
            f"class number {unknown[0]} has images to classify but none to learn from; add some or leave it out"
        )


def _fit(features: Tensor, labels: Tensor, rate: float, seed: int, settings: ProbeSettings) -> nn.Linear:
    """A linear classifier after `epochs` passes, its rate falling to zero as a half cosine."""
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.normal_(classifier.weight, std=0.01, generator=generator)
    nn.init.zeros_(classifier.bias)
    optimizer = _optimizer(classifier, rate, settings)
    batch = min(_LARGEST_BATCH, max(_LEAST_BATCH, len(features) // _STEPS))
    steps = -(-len(features) // batch) * settings.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(settings.epochs):
        for part in torch.randperm(len(features), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(classifier(features[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    return classifier


def _optimizer(classifier: nn.Linear, rate: float, settings: ProbeSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "lars":
        # As in MAE's probe: the step of the matrix is measured by its norm, that of the vector is not. timm's would be plain
        # SGD without decay.
        matrix = {"params": [classifier.weight], "weight_decay": settings.weight_decay, "always_adapt": True}
        momentum: Any = 0.9  # timm says int, from its defaults
        return Lars([matrix, {"params": [classifier.bias]}], lr=rate, momentum=momentum)
    return torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=settings.weight_decay)


def sorted_rates(rates: Sequence[float], optimizer: OptimizerName) -> tuple[float, ...]:
    """The given rates from small to large, or the optimizer's own sweep if there are none."""
    return tuple(sorted(set(rates))) or RATES[optimizer]
