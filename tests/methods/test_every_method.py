"""What is registered is tested: every method on every small encoder takes two steps that reach every weight."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from tiny_training import NORMALIZATION, keys_of, pixels

from edgemim.config import Config
from edgemim.methods import MethodConfig
from edgemim.models.encoder import Encoder
from edgemim.models.sizes import SIZES, EncoderConfig, VitConfig
from edgemim.teachers import MaskedTeacher, Teacher, TimmTeacher
from edgemim.training.optim import build_adamw, set_learning_rate


def members(union: object) -> tuple[type[Config], ...]:
    """The config classes of an annotated union (or of a single class)."""
    inner = get_args(union)[0]
    return get_args(inner) or (inner,)


METHODS = members(MethodConfig)
SMALL = {name: size for name, size in SIZES.items() if isinstance(size, VitConfig) and size.width <= 96}


@pytest.fixture(scope="module")
def teachers() -> dict[tuple[int, tuple[int, int]], Teacher]:
    """One small random teacher for each image size and grid, made when first asked for."""
    return {}


def teacher_for(
    method: Config, size: VitConfig, made: dict[tuple[int, tuple[int, int]], Teacher]
) -> Teacher | MaskedTeacher:
    torch.manual_seed(0)
    if method.teacher_kind == "masked":  # pyright: ignore[reportAttributeAccessIssue]
        return MaskedTeacher(Encoder(size.model_copy(update={"width": 40, "heads": 5, "depth": 3})), NORMALIZATION)
    place = (size.image_size, size.grid)
    if place not in made:
        made[place] = TimmTeacher(model="test_resnet", pretrained=False).build(*place)
    return made[place]


def test_every_encoder_family_has_a_small_size() -> None:
    assert {type(size) for size in SMALL.values()} == set(members(EncoderConfig))


@pytest.mark.parametrize("encoder_name", sorted(SMALL))
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_two_steps_reach_every_weight(
    method: type[Config], encoder_name: str, teachers: dict[tuple[int, tuple[int, int]], Teacher]
) -> None:
    size = SMALL[encoder_name]
    torch.manual_seed(0)
    model = method().build(Encoder(size), NORMALIZATION, teacher_for(method(), size, teachers)).train()  # pyright: ignore
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    set_learning_rate(optimizer, 1e-3)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, keys = pixels(4, size.image_size), keys_of(4)
    losses = []
    reached: set[str] = set()
    for _ in range(2):
        output = model(images, keys, None)
        output.loss.backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
        assert all(bool(torch.isfinite(value)) for value in output.metrics.values())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable - reached == set()
    after = dict(model.named_parameters())
    unmoved = {name for name in trainable if torch.equal(start[name], after[name])}
    moved = {name for name in start.keys() - trainable if not torch.equal(start[name], after[name])}
    assert (unmoved, moved) == (set(), set())
    assert losses[1] < losses[0]  # the same batch and masks: a step along the gradient helps


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_method_is_the_same_twice(method: type[Config], teachers: dict) -> None:
    size = SMALL["vit_nano"]
    losses = []
    for _ in range(2):
        teacher = teacher_for(method(), size, teachers)  # seeds the generator, and may draw from it
        torch.manual_seed(3)
        model = method().build(Encoder(size), NORMALIZATION, teacher)  # pyright: ignore
        losses.append(model(pixels(4, size.image_size), keys_of(4), None).loss)
    assert torch.equal(*losses)
