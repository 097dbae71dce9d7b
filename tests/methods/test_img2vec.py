"""Img2Vec-style branches: deep features and the pooled one; there is no published code to compare with."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NORMALIZATION, GridTeacher, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.img2vec import Img2VecConfig
from edgemim.methods.targets import normalize_features
from edgemim.models.sizes import VitConfig

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
    cosine = torch.nn.functional.cosine_similarity(vector, raw.mean(1), dim=-1)
    torch.testing.assert_close(model.loss(x, mask).loss, expected + 0.7 * (2 - 2 * cosine).mean(), rtol=1e-5, atol=1e-5)


def test_without_the_global_branch_or_a_teacher() -> None:
    model = Img2VecConfig(global_weight=0).build(nano_encoder(SIX), NORMALIZATION, GridTeacher(8, 4))
    assert len(model.branches) == 4
    with pytest.raises(UserError, match="needs a teacher"):
        Img2VecConfig().build(nano_encoder(SIX), NORMALIZATION, None)
