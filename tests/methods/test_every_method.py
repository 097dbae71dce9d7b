"""What is registered is tested: every method on every small encoder takes two steps that reach every weight."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from tiny_tokenizer import noise_tokenizer
from tiny_training import NORMALIZATION, keys_of, pixels

from edgemim.config import Config
from edgemim.errors import UserError
from edgemim.methods import MethodConfig
from edgemim.models.build import build_encoder
from edgemim.models.sizes import SIZES, EncoderConfig, EncoderSize
from edgemim.teachers import MaskedTeacher, Teacher, TimmTeacher
from edgemim.training.optim import build_adamw, set_learning_rate


def members(union: object) -> tuple[type[Config], ...]:
    """The config classes of an annotated union (or of a single class)."""
    inner = get_args(union)[0]
    return get_args(inner) or (inner,)


METHODS = members(MethodConfig)
SMALL = {name: size for name, size in SIZES.items() if size.width <= 128 and size.depth <= 6}
# What makes no sense, and a word of the one sentence that says so before anything is loaded.
REFUSED = {
    ("mff", "hiera"): "one width",
    ("mirl", "hiera"): "one width",
    ("simmim", "hiera"): "mask token",
    ("maskfeat", "hiera"): "mask token",
    ("beit", "hiera"): "mask token",
    ("mocov3", "hiera"): "class token",
}
SMALLER_TEACHER: dict[str, dict[str, Any]] = {"hiera": {"embed_dim": 8, "stages": (1, 1, 1, 1)}}


def configured(method: type[Config], size: Any) -> Any:
    """A method with what it cannot do without, and without what is large by default."""
    name = method.model_fields["name"].default
    changes: dict[str, dict[str, Any]] = {
        "beit": {"tokenizer": noise_tokenizer(size.patch_size)},
        "mocov3": {"hidden_width": 32, "embedding_width": 16},
    }
    return method.model_validate(changes.get(name, {}))


def inputs_of(config: Any, count: int, size: Any) -> torch.Tensor:
    """Random uint8 images in the form that a method reads: MoCo-v3 two of each, the second half noise."""
    images = pixels(count, size.image_size)
    if config.name != "mocov3":
        return images
    noise = pixels(count, size.image_size, seed=1)
    return torch.stack([images, images // 2 + noise // 2], dim=1)


@pytest.fixture(scope="module")
def teachers() -> dict[tuple[int, tuple[int, int]], Teacher]:
    """One small random teacher for each image size and grid, made when first asked for."""
    return {}


def teacher_for(
    method: Config, size: EncoderSize, made: dict[tuple[int, tuple[int, int]], Teacher]
) -> Teacher | MaskedTeacher:
    torch.manual_seed(0)
    if method.teacher_kind == "masked":  # pyright: ignore[reportAttributeAccessIssue]
        other = size.model_copy(update=SMALLER_TEACHER.get(size.name, {"width": 40, "heads": 5, "depth": 3}))
        return MaskedTeacher(build_encoder(other), NORMALIZATION)
    place = (size.image_size, size.grid)
    if place not in made:
        made[place] = TimmTeacher(model="test_resnet", pretrained=False).build(*place)
    return made[place]


def test_every_encoder_family_has_a_small_size() -> None:
    assert {type(size) for size in SMALL.values()} == set(members(EncoderConfig))


def check_refused(config: Any, size: EncoderSize) -> None:
    """One sentence that names method, encoder and remedy, when asked before anything is loaded and when composed."""
    with pytest.raises(UserError, match=REFUSED[config.name, size.name]) as early:
        config.check(size)
    sentence = str(early.value)
    assert f"method {config.name} " in sentence and f"encoder {size.name}" in sentence and "give --" in sentence
    assert "\n" not in sentence
    with pytest.raises(UserError) as late:
        config.build(build_encoder(size), NORMALIZATION, None)
    assert str(late.value) == sentence


@pytest.mark.parametrize("encoder_name", sorted(SMALL))
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_two_steps_reach_every_weight(
    method: type[Config], encoder_name: str, teachers: dict[tuple[int, tuple[int, int]], Teacher]
) -> None:
    size = SMALL[encoder_name]
    config = configured(method, size)
    if (config.name, size.name) in REFUSED:
        check_refused(config, size)
        return
    config.check(size)
    torch.manual_seed(0)
    model = config.build(build_encoder(size), NORMALIZATION, teacher_for(config, size, teachers)).train()
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    set_learning_rate(optimizer, 1e-4)  # 1e-3 is a step too long for Hiera, and for the batch norms of MoCo-v3
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, keys = inputs_of(config, 8, size), keys_of(8)
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
    config = configured(method, size)
    losses = []
    for _ in range(2):
        teacher = teacher_for(config, size, teachers)  # seeds the generator, and may draw from it
        torch.manual_seed(3)
        model = config.build(build_encoder(size), NORMALIZATION, teacher)
        losses.append(model(inputs_of(config, 4, size), keys_of(4), None).loss)
    assert torch.equal(*losses)
