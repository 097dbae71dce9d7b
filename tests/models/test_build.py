"""Encoders are made from their configuration in one place."""

from __future__ import annotations

import pydantic
import pytest
import torch

from edgemim.models.build import build_encoder, parse_encoder
from edgemim.models.sizes import SIZES


@pytest.mark.parametrize("name", sorted(name for name in SIZES if "micro" in name or "nano" in name))
def test_a_size_is_built_from_what_its_record_holds(name: str) -> None:
    recorded = SIZES[name].model_dump(mode="json")
    config = parse_encoder(recorded)
    assert config == SIZES[name]
    encoder = build_encoder(config)
    assert encoder.config is config
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, config.image_size, config.image_size))
    assert features.grid == config.grid
    assert features.last.shape == (1, features.prefix + config.tokens, config.width)


def test_a_family_that_is_not_there_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError):
        parse_encoder({"name": "no_such_family"})
