"""Img2Vec-style branches: deep features and the pooled one; there is no published code to compare with."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NORMALIZATION, GridTeacher, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.img2vec import Img2VecConfig, mean_token
from edgemim.methods.targets import normalize_features
from edgemim.models.sizes import VitConfig
from edgemim.teachers import TimmTeacher

SIX = VitConfig(width=24, depth=6, heads=3, patch_size=8, image_size=32)


def test_branches_and_one_pass_of_the_teacher() -> None:
    teacher = GridTeacher(8, 4)
    model = Img2VecConfig().build(nano_encoder(SIX), NORMALIZATION, teacher)
    assert [branch.name for branch in model.branches] == ["block_6", "block_5", "block_4", "block_3", "global"]
    model.loss(NORMALIZATION.apply(pixels(2)), mask_of(2)).loss.backward()
    assert teacher.calls == 1
    assert model.branches[0].target is model.branches[3].target


def test_the_loss_by_hand() -> None:
    teacher = GridTeacher(8, 4)
    model = Img2VecConfig(feature_loss="mse", taps=(2, 6), global_weight=0.7).build(
        nano_encoder(SIX), NORMALIZATION, teacher
    )
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    features, raw = model.encode(x, mask), teacher(NORMALIZATION.undo(x))
    expected = torch.zeros(())
    for branch in model.branches[:2]:
        error = (branch.decoder(features, mask) - normalize_features(raw)).square().mean(-1)
        expected = expected + error[mask.masked].mean()
    vector = model.branches[2].decoder(features, mask)[:, 0]
    flat = raw.reshape(-1, raw.shape[-1])
    mean = ((raw - flat.mean(0)) / flat.std(0)).mean(1)
    cosine = torch.nn.functional.cosine_similarity(vector, mean, dim=-1)
    torch.testing.assert_close(model.loss(x, mask).loss, expected + 0.7 * (2 - 2 * cosine).mean(), rtol=1e-5, atol=1e-5)


def test_weights_of_the_blocks() -> None:
    teacher, x, mask = GridTeacher(8, 4), NORMALIZATION.apply(pixels(2)), mask_of(2)
    plain = Img2VecConfig(taps=(2, 6), global_weight=0).build(nano_encoder(SIX), NORMALIZATION, teacher)
    weighted = Img2VecConfig(taps=(2, 6), weights=(0.25, 3), global_weight=0).build(
        nano_encoder(SIX), NORMALIZATION, teacher
    )
    weighted.load_state_dict(plain.state_dict())
    parts = plain.loss(x, mask).metrics
    expected = 0.25 * parts["loss_block_2"] + 3 * parts["loss_block_6"]
    torch.testing.assert_close(weighted.loss(x, mask).loss, expected)
    with pytest.raises(UserError, match="'weights' has 3 numbers for 2 blocks"):
        Img2VecConfig(taps=(2, 6), weights=(1, 1, 1)).build(nano_encoder(SIX), NORMALIZATION, teacher)


def test_a_constant_does_not_answer_the_global_branch() -> None:
    """Features after a ReLU share one large component; without it, the mean tokens of two images point anywhere."""
    raw = torch.rand(64, 16, 40, generator=torch.Generator().manual_seed(0)) + 1
    losses = []
    for vectors in (raw.mean(1), mean_token(raw)[:, 0]):
        constant = vectors.mean(0, keepdim=True).expand_as(vectors)
        losses.append(float((2 - 2 * torch.nn.functional.cosine_similarity(vectors, constant, dim=-1)).mean()))
    assert losses[0] < 0.05
    assert losses[1] > 1.5


@pytest.mark.parametrize(
    ("model", "keys", "channels", "side"),
    [
        ("test_resnet", {}, 192, 160),
        ("test_resnet", {"stage": 4}, 96, 320),
        ("test_resnet", {"output_stride": 16}, 96, 160),
        ("test_vit", {}, 64, 160),
    ],
)
def test_every_exact_way_to_meet_the_grid(model: str, keys: dict, channels: int, side: int) -> None:
    """Tokens are the network's own map, row by row, at the grid of the patches: nothing is interpolated."""
    torch.manual_seed(0)
    teacher = TimmTeacher(model=model, pretrained=False, **keys).build(160, (10, 10))
    assert (teacher.grid, teacher.channels, teacher.input_size) == ((10, 10), channels, (side, side))
    x = torch.rand(1, 3, 160, 160)
    options = {"norm": True} if model == "test_vit" else {}
    run = teacher.model.forward_intermediates  # pyright: ignore
    maps = run(teacher.prepare(x), indices=[teacher.stage], intermediates_only=True, **options)  # pyright: ignore
    tokens = teacher(x)
    for row, column in ((0, 0), (2, 7), (9, 9)):
        torch.testing.assert_close(tokens[0, 10 * row + column], maps[0][0, :, row, column], rtol=1e-4, atol=1e-5)


def test_without_the_global_branch_or_a_teacher() -> None:
    model = Img2VecConfig(global_weight=0).build(nano_encoder(SIX), NORMALIZATION, GridTeacher(8, 4))
    assert len(model.branches) == 4
    with pytest.raises(UserError, match="needs a teacher"):
        Img2VecConfig().build(nano_encoder(SIX), NORMALIZATION, None)
