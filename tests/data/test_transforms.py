"""Transforms: the same pictures as timm and torchvision make with the same numbers, and randomness from the key alone."""

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgemim.data.transforms import (
    CropAndFlip,
    EvalTransform,
    FinetuneTransform,
    PretrainTransform,
    random_resized_box,
    seeded_globals,
)
from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError


def picture(height, width, seed=0):
    """A smooth colour picture with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


CONFIGS = [
    PretrainTransform(),
    PretrainTransform(crop="simple_resized"),
    PretrainTransform(crop="none", interpolation="random"),
    FinetuneTransform(),
    FinetuneTransform(rand_augment="augmix-m5-w2"),
    FinetuneTransform(rand_augment="original-mstd0.5"),
    FinetuneTransform(rand_augment="", interpolation="random"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{type(config).__name__}-{config.model_dump()}"[:60])
def test_the_key_alone_decides(config):
    transform, image = config.build(32), picture(50, 70)
    first = [transform(image, key) for key in range(12)]
    for shift in (1, 2):
        random.seed(shift)
        np.random.seed(shift)
        torch.manual_seed(shift)
        again = [pickle.loads(pickle.dumps(transform))(image, key) for key in reversed(range(12))][::-1]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for output in first:
        assert output.shape == (3, 32, 32)
        assert output.dtype == np.uint8
        assert output.flags.c_contiguous
    if not (isinstance(config, PretrainTransform) and config.crop == "none"):
        assert len({output.tobytes() for output in first}) > 6


def test_globals_are_left_as_they_were():
    transform = FinetuneTransform().build(32)
    image = picture(40, 40)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    for key in range(20):
        transform(image, key)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
@pytest.mark.parametrize("size", [(60, 90), (200, 31), (20, 300), (7, 9)])
def test_random_resized_crop_is_timms(size, interpolation):
    """timm's own transform, its generator seeded with the key, makes the same pixels."""
    from timm.data.transforms import RandomResizedCropAndInterpolation

    image = picture(*size)
    theirs = RandomResizedCropAndInterpolation(48, scale=(0.2, 1.0), interpolation=interpolation)
    ours = PretrainTransform(flip=False, interpolation=interpolation).build(48)
    for key in range(40):
        random.seed(key)
        expected = np.asarray(theirs(Image.fromarray(image))).transpose(2, 0, 1)
        assert np.array_equal(ours(image, key), expected)


def test_simple_resized_crop_is_torchvisions():
    """Resize the short side, pad four pixels by reflection, cut a square: torchvision does it on whole pictures."""
    from torchvision.transforms import functional

    ours = PretrainTransform(crop="simple_resized", flip=False).build(32)
    for size in [(50, 80), (90, 41), (32, 32), (20, 25)]:
        image = picture(*size)
        whole = functional.resize(Image.fromarray(image), 32, functional.InterpolationMode.BICUBIC)
        padded = np.asarray(functional.pad(whole, [4, 4, 4, 4], padding_mode="reflect"))
        offsets = set()
        for key in range(60):
            rng = random.Random(key)
            top = rng.randint(0, padded.shape[0] - 32)
            left = rng.randint(0, padded.shape[1] - 32)
            offsets |= {("top", top), ("left", left)}
            expected = padded[top : top + 32, left : left + 32].transpose(2, 0, 1).astype(int)
            difference = np.abs(ours(image, key).astype(int) - expected)
            # Pillow chooses the order of its two passes by size and rounds between them.
            assert difference.max() <= 2
            assert difference.mean() < 0.3
        assert {("top", 0), ("left", 0), ("top", padded.shape[0] - 32)} <= offsets


def test_no_crop_is_the_centre():
    from torchvision.transforms import functional

    for size in [(64, 40), (50, 80), (33, 32), (20, 301)]:
        image = picture(*size)
        whole = functional.resize(Image.fromarray(image), 32, functional.InterpolationMode.BICUBIC)
        expected = np.asarray(functional.center_crop(whole, [32, 32])).transpose(2, 0, 1).astype(int)
        ours = PretrainTransform(crop="none", flip=False).build(32)(image, 5)
        # Pillow chooses the order of its two passes by size and rounds between them.
        assert np.abs(ours.astype(int) - expected).max() <= 2
    exact = picture(32, 32)
    assert np.array_equal(PretrainTransform(crop="none", flip=False).build(32)(exact, 0), exact.transpose(2, 0, 1))


def test_flip_happens_half_of_the_time():
    image = picture(32, 32)
    transform = PretrainTransform(crop="none").build(32)
    outputs = [transform(image, key) for key in range(400)]
    flipped = sum(np.array_equal(output, image[:, ::-1].transpose(2, 0, 1)) for output in outputs)
    plain = sum(np.array_equal(output, image.transpose(2, 0, 1)) for output in outputs)
    assert flipped + plain == 400
    assert 150 < flipped < 250


def test_rand_augment_is_timms():
    """The policy that timm's create_transform builds for the same string, fed and seeded alike, makes the same pixels."""
    from timm.data import create_transform

    text = "rand-m5-mstd0.5-inc1"
    policy = create_transform(48, is_training=True, auto_augment=text, interpolation="bicubic", separate=True)[1]
    ours = FinetuneTransform(rand_augment=text).build(48)
    crop = CropAndFlip(48, "random_resized", (0.08, 1.0), True, "bicubic")
    image = picture(60, 80)
    for key in range(30):
        square = Image.fromarray(np.ascontiguousarray(crop.square(image, key)))
        with seeded_globals(key):
            expected = np.asarray(policy(square)).transpose(2, 0, 1)
        assert np.array_equal(ours(image, key), expected)


def test_posterize_to_zero_bits_is_black_as_it_was_before_pillow_13():
    transform = FinetuneTransform(rand_augment="rand-m10-inc1-p1-n1").build(32)
    posterize = next(op for op in transform.policy.ops if op.name == "PosterizeIncreasing")
    black = np.asarray(posterize(Image.fromarray(picture(32, 32))))
    assert not black.any()
    for key in range(150):
        transform(picture(32, 32), key)


@pytest.mark.parametrize("text", ["rnad-m9", "rand-q9", "original-x3"])
def test_an_unknown_policy_is_the_users_error(text):
    with pytest.raises(UserError, match="does not know the policy"):
        FinetuneTransform(rand_augment=text).build(224)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.2, 1.1)])
def test_impossible_crop_scales_are_refused(scale):
    with pytest.raises(ValueError, match="crop_scale"):
        PretrainTransform(crop_scale=scale)


sides = st.integers(1, 400)


@given(sides, sides, st.integers(0, 2**63 - 1))
def test_a_box_lies_in_the_picture(height, width, key):
    top, left, rows, columns = random_resized_box(height, width, (0.08, 1.0), random.Random(key))
    assert rows >= 1
    assert columns >= 1
    assert 0 <= top <= height - rows
    assert 0 <= left <= width - columns


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.integers(0, 2**63 - 1))
def test_any_picture_gives_a_square(height, width, key):
    image = np.zeros((height, width, 3), np.uint8) + np.uint8(77)
    for config in CONFIGS[:3]:
        output = config.build(32)(image, key)
        assert output.shape == (3, 32, 32)
        assert (output == 77).all()


def test_a_strip_costs_no_memory():
    """The whole of it resized would be 3 × 224 × 13 million bytes."""
    strip = np.zeros((1, 60_000, 3), np.uint8)
    for crop in ("random_resized", "simple_resized", "none"):
        assert PretrainTransform(crop=crop).build(224)(strip, 1).shape == (3, 224, 224)


def test_evaluation_is_the_edge_wings_crop():
    preprocessing = Preprocessing(image_size=48)
    image = picture(90, 70)
    transform = EvalTransform(preprocessing)
    output = transform(image, 12345)
    assert np.array_equal(output, preprocessing.resize_crop(image).transpose(2, 0, 1))
    assert np.array_equal(output, transform(image))
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    assert np.array_equal(((torch.from_numpy(output).float() / 255 - mean) / std).numpy(), preprocessing(image))
