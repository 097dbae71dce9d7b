"""The four arms: one pre-training run a seed, a learning rate chosen on held-out training crops, then fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemim.commands.finetune import FinetuneConfig
from edgemim.commands.pretrain import PretrainConfig
from edgemim.commands.quickstart.config import ARMS, PRETRAINED, Outcome, QuickstartConfig
from edgemim.commands.quickstart.jobs import Job, JobPool
from edgemim.data.photos import PhotoCrops
from edgemim.data.transforms import FinetuneTransform, PretrainTransform
from edgemim.edge.machine import usable_cpus
from edgemim.methods import MethodConfig
from edgemim.tasks.classification import MixingConfig

_GREY_MEAN, _GREY_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
_SMALL_RUN: dict[str, Any] = {"workers": 0, "device": "cpu", "log_every": 5}


def train_all(outcome: Outcome) -> None:
    """Pre-train, choose each arm's learning rate on held-out training crops, then fine-tune on all of them."""
    config, crops = outcome.config, outcome.crops
    with JobPool(config.processes or min(8, usable_cpus())) as pool:
        outcome.pretrained = pool.run(
            {(arm, seed): pretrain_job(config, arm, seed, crops) for seed in config.seeds for arm in PRETRAINED}
        )
        trials = {(arm, lr): choosing_job(config, arm, lr, crops) for arm in ARMS for lr in config.finetune_lrs}
        for (arm, lr), results in pool.run(trials).items():
            outcome.choice.setdefault(arm, {})[lr] = results["top1"]
        outcome.chosen = {arm: best_rate(tried) for arm, tried in outcome.choice.items()}
        outcome.finetuned = pool.run(
            {
                (arm, seed): final_job(config, arm, seed, outcome.chosen[arm], crops)
                for seed in config.seeds
                for arm in ARMS
            }
        )


def best_rate(tried: Mapping[float, float]) -> float:
    """The learning rate with the best held-out accuracy; of equals, the smallest."""
    return min(tried, key=lambda rate: (-tried[rate], rate))


def pretrain_job(config: QuickstartConfig, arm: str, seed: int, crops: PhotoCrops) -> Job:
    """One pre-training run. Crops are crops already: the only augmentation is a flip."""
    method: MethodConfig = getattr(config, arm)
    return Job(
        f"pre-training, {ARMS[arm]}, seed {seed}",
        PretrainConfig(
            out=config.out / "pretrain" / f"{arm}-{seed}",
            data=crops.unlabelled,
            method=method,
            encoder=config.encoder,
            teacher=config.teacher if method.name == "feature_distill" else None,
            transform=PretrainTransform(crop="none"),
            epochs=config.pretrain_epochs,
            warmup_epochs=config.pretrain_epochs / 10,
            batch_size=config.batch_size,
            base_lr=per_256(config.pretrain_lr, config.batch_size),
            seed=seed,
            picture_every=1,
            # The crops are grey: with one mean for all channels they stay so, and reconstructions take no tint.
            mean=_GREY_MEAN,
            std=_GREY_STD,
            **_SMALL_RUN,
        ),
    )


def choosing_job(config: QuickstartConfig, arm: str, lr: float, crops: PhotoCrops) -> Job:
    """A fine-tuning run that is judged on a share of the training crops."""
    seed = config.seeds[0]
    place, share = config.out / "choose" / f"{arm}-{lr:g}", {"val_share": config.choose_share}
    return Job(
        f"trying learning rate {lr:g}, {ARMS[arm]}", finetuning(config, arm, seed, lr, crops, out=place, **share)
    )


def final_job(config: QuickstartConfig, arm: str, seed: int, lr: float, crops: PhotoCrops) -> Job:
    """A fine-tuning run on all training crops that is measured on the test crops, once, at its end."""
    place = config.out / "finetune" / f"{arm}-{seed}"
    settings = finetuning(config, arm, seed, lr, crops, out=place, val=crops.test)
    return Job(f"fine-tuning, {ARMS[arm]}, seed {seed}", settings)


def finetuning(
    config: QuickstartConfig, arm: str, seed: int, lr: float, crops: PhotoCrops, **settings: Any
) -> FinetuneConfig:
    """What all fine-tuning runs share; a small network on a small set wants little augmentation."""
    return FinetuneConfig(
        data=crops.train,
        init="scratch" if arm == "scratch" else str(config.out / "pretrain" / f"{arm}-{seed}"),
        encoder=config.encoder,
        transform=FinetuneTransform(crop_scale=(0.8, 1.0), rand_augment=""),
        mixing=MixingConfig(mixup=0.0),
        crop_pct=1.0,
        epochs=config.finetune_epochs,
        warmup_epochs=config.finetune_epochs / 10,
        batch_size=config.batch_size,
        base_lr=per_256(lr, config.batch_size),
        evaluate_every=0,
        seed=seed,
        **_SMALL_RUN,
        **settings,
    )


def per_256(peak: float, batch_size: int) -> float:
    """The setting `base_lr` that gives a peak learning rate at this batch size."""
    return peak * 256 / batch_size
