"""Every registered method on every encoder family: stopped midway on real images and resumed, it ends at the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_every_method import METHODS, REFUSED, SMALL, configured, teacher_for
from tiny_training import NORMALIZATION

from edgemim.config import Config
from edgemim.data.folders import ImageFolder, scan_folder
from edgemim.data.loader import build_loader, steps_per_epoch
from edgemim.data.transforms import PretrainTransform
from edgemim.errors import UserError
from edgemim.models.build import build_encoder
from edgemim.models.sizes import EncoderSize
from edgemim.training.distributed import World
from edgemim.training.loop import Trainer
from edgemim.training.optim import build_adamw, optimizer_tensors
from edgemim.training.recipe import Plan, TrainingConfig

BATCH, STEPS, SAVED, STOPPED = 8, 5, 2, 3
# Of each family the smallest.
FAMILIES: dict[str, EncoderSize] = {
    size.name: size for size in sorted(SMALL.values(), key=lambda size: (size.tokens, size.width), reverse=True)
}


class Gone(Exception):
    """Stands for a process that ended between two steps."""


@pytest.fixture(scope="module")
def images(photos: Path) -> ImageFolder:
    """Crops of real photos."""
    return scan_folder(photos)


def trainer_of(method: Any, size: EncoderSize, folder: Path, images: ImageFolder, *, seed: int) -> Trainer:
    """A trainer whose weights are drawn with a seed: a resumed one must not need the same."""
    teacher = teacher_for(method, size, {})  # pyright: ignore[reportArgumentType]
    torch.manual_seed(seed)
    model = method.build(build_encoder(size), NORMALIZATION, teacher).train()
    steps = steps_per_epoch(len(images), BATCH)
    config = TrainingConfig(batch_size=BATCH, base_lr=0.05, epochs=STEPS / steps, checkpoint_epochs=SAVED / steps)
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    world = World(0, 1, torch.device("cpu"))
    plan = Plan(steps, STEPS, warmup_steps=1)
    return Trainer(model, optimizer, config, plan, world, folder, data_fingerprint=images.fingerprint, label="test")


def train(trainer: Trainer, transform: Any, images: ImageFolder, *, stop: int = STEPS) -> int:
    """Train from the newest checkpoint to the end, or until the process is gone after step `stop`; return the start."""
    start = trainer.restore()
    batches = build_loader(images, transform, batch_size=BATCH, seed=0, start_step=start, total_steps=STEPS, workers=0)
    if stop == STEPS:
        trainer.run(batches, start)
    else:
        with pytest.raises(Gone):
            trainer.run(cut(batches, stop - start), start)
    return start


def cut(batches: Any, count: int) -> Iterator[Any]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch
    raise Gone


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_stopped_run_ends_at_the_same_bits(
    method: type[Config], family: str, images: ImageFolder, tmp_path: Path
) -> None:
    name = method.model_fields["name"].default
    size = FAMILIES[family]
    config = configured(method, size)
    transform = config.build_transform(PretrainTransform(), size.image_size)
    if (name, family) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name, family]):
            trainer_of(config, size, tmp_path, images, seed=0)
        return
    whole = trainer_of(config, size, tmp_path / "whole", images, seed=0)
    drawn = {key: value.clone() for key, value in whole.objective.state_dict().items()}
    assert train(whole, transform, images) == 0
    train(trainer_of(config, size, tmp_path / "parts", images, seed=0), transform, images, stop=STOPPED)
    resumed = trainer_of(config, size, tmp_path / "parts", images, seed=99)
    assert train(resumed, transform, images) == SAVED  # the step after the newest checkpoint is taken again
    for ours, theirs in (
        (resumed.objective.state_dict(), whole.objective.state_dict()),
        (optimizer_tensors(resumed.optimizer, resumed.objective), optimizer_tensors(whole.optimizer, whole.objective)),
    ):
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    trained = {key for key, p in whole.objective.named_parameters() if p.requires_grad}
    assert {key for key in trained if torch.equal(drawn[key], whole.objective.state_dict()[key])} == set()
