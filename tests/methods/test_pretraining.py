"""What every method hands on, and what stays empty unless a method says otherwise."""

from __future__ import annotations

import torch
from tiny_training import NORMALIZATION, keys_of, nano_encoder, pixels

from edgemim.methods.mae import MaeConfig
from edgemim.methods.mocov3 import MocoV3Config
from edgemim.methods.pretraining import PretrainObjective


def test_the_encoder_is_handed_on_under_timms_names() -> None:
    encoder = nano_encoder()
    model = MaeConfig().build(encoder, NORMALIZATION, None)
    assert isinstance(model, PretrainObjective)
    assert model.exported is encoder.vit
    assert "blocks.0.attn.qkv.weight" in model.exported.state_dict()


def test_an_image_is_judged_by_the_mean_of_its_patches_or_by_the_token_that_was_trained() -> None:
    encoder, x = nano_encoder(), NORMALIZATION.apply(pixels(2))
    features = encoder(x, taps=(1, 2))
    tokens = encoder.vit.norm(features.tokens[2])
    mae = MaeConfig().build(encoder, NORMALIZATION, None)
    assert torch.equal(mae.pool(features), tokens[:, 1:].mean(1))
    moco = MocoV3Config(hidden_width=8, embedding_width=4).build(nano_encoder(), NORMALIZATION, None)
    assert torch.equal(moco.pool(features), tokens[:, 0])


def test_without_a_picture_and_between_steps_nothing_happens() -> None:
    model = PretrainObjective()
    model.encoder = nano_encoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.reconstruct(pixels(2), keys_of(2)) is None
    model.begin_step(0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
