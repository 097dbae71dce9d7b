"""BEiT: words of hidden blocks, from a tokenizer made of real photos; its masks are compared in tests/golden."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tokenizer import colour_codebook, noise_tokenizer, patch_colours, write_tokenizer
from tiny_training import NORMALIZATION, keys_of, nano_encoder, pixels

from edgemim.commands.pretrain import PretrainConfig, pretrain
from edgemim.data.transforms import PretrainTransform
from edgemim.errors import UserError
from edgemim.methods.beit import BeitConfig
from edgemim.methods.masking import BlockMasking
from edgemim.models.weights import load_encoder
from edgemim.training.optim import build_adamw, set_learning_rate

WORDS = 16


@pytest.fixture(scope="module")
def crops(photos: Path) -> torch.Tensor:
    """uint8 [48, 3, 32, 32] of real photos."""
    files = sorted(photos.rglob("*.png"))[:48]
    return torch.from_numpy(
        np.stack([np.asarray(Image.open(file).resize((32, 32))).transpose(2, 0, 1) for file in files])
    )


@pytest.fixture(scope="module")
def tokenizer(crops: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k-means over the photos' patch colours."""
    book = colour_codebook(patch_colours(crops.numpy() / 255, 8).reshape(-1, 3), WORDS)
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "colours.onnx", book, 8)


def test_the_loss_by_hand() -> None:
    model = BeitConfig(tokenizer=noise_tokenizer(8)).build(nano_encoder(), NORMALIZATION, None)
    x = NORMALIZATION.apply(pixels(3))
    mask = model.masking(keys_of(3), 16)
    (branch,) = model.branches
    scores, words = branch.decoder(model.encode(x, mask), mask).detach(), branch.target(x, mask)
    assert scores.shape == (3, 16, 12) and words.shape == (3, 16)
    terms = [
        -float((scores[i, j].exp() / scores[i, j].exp().sum())[words[i, j]].log())
        for i in range(3)
        for j in range(16)
        if mask.masked[i, j]
    ]
    assert float(model.loss(x, mask).loss.detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert model.mask_token is not None  # hidden patches stay in their places
    assert model.encode(x, mask).last.shape[1] == 17
    assert model.reconstruct(pixels(3), keys_of(3)) is None


def test_as_many_patches_are_hidden_as_published() -> None:
    masking = BlockMasking(ratio=BeitConfig().mask_ratio, min_block=16, grid=(14, 14))
    assert (masking(keys_of(8), 196).masked.sum(1) == 75).all()


def test_it_learns_words_from_their_neighbours(crops: torch.Tensor, tokenizer: Path) -> None:
    """Better than the words' frequencies alone, on photos: nothing but context can tell more."""
    model = BeitConfig(tokenizer=tokenizer).build(nano_encoder(), NORMALIZATION, None).train()
    words = model.branches[0].target(NORMALIZATION.apply(crops), model.masking(keys_of(48), 16))
    share = torch.bincount(words.flatten(), minlength=WORDS) / words.numel()
    entropy = float(-(share * share.clamp(min=1e-9).log()).sum())
    assert entropy > 2  # all sorts of words
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.999))
    set_learning_rate(optimizer, 3e-3)
    for step in range(80):
        output = model(crops, keys_of(48, seed=step))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert float(model(crops, keys_of(48, seed=999)).loss) < entropy - 0.5


def test_colours_are_jittered_and_the_tokenizer_sees_them_so() -> None:
    image = pixels(1, 64)[0].permute(1, 2, 0).numpy()
    plain = BeitConfig(color_jitter=0).build_transform(PretrainTransform(), 32)(image, 5)
    made = BeitConfig().build_transform(PretrainTransform(), 32)
    assert made(image, 5).shape == (3, 32, 32)
    assert np.array_equal(made(image, 5), made(image, 5))
    assert not np.array_equal(made(image, 5), plain)
    assert np.array_equal(PretrainTransform().build(32)(image, 5), plain)


def test_without_a_tokenizer_or_with_another_grid_it_is_refused() -> None:
    with pytest.raises(UserError, match="needs a tokenizer; give"):
        BeitConfig().build(nano_encoder(), NORMALIZATION, None)
    with pytest.raises(UserError, match="8×8 words on 32 px images, the encoder has 4×4 patches"):
        BeitConfig(tokenizer=noise_tokenizer(4)).build(nano_encoder(), NORMALIZATION, None)


def test_a_run_on_photos_hands_on_an_encoder(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"knn_every": 0, "workers": 0, "batch_size": 40, "warmup_epochs": 1, "device": "cpu"}
    method = BeitConfig(tokenizer=tokenizer)
    config = PretrainConfig.model_validate(
        {
            **settings,
            "data": photos,
            "out": tmp_path / "run",
            "method": method,
            "encoder": "vit_nano",
            "epochs": 8,
            "base_lr": 0.01,
        }
    )
    results = pretrain(config)
    assert results["steps"] == 24
    assert results["last_metrics"]["loss_word"] < 0.9 * math.log(WORDS)
    assert load_encoder(tmp_path / "run").config == config.encoder
