"""The one place that makes an encoder from its configuration, in code and from a model folder's facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic

from edgemim.models.encoder import Encoder
from edgemim.models.hiera import HieraEncoder
from edgemim.models.relative import RelativeEncoder
from edgemim.models.sizes import EncoderConfig, EncoderSize, HieraConfig, RelativeVitConfig, VitConfig

# One line a family: a new one is named here and in `sizes.EncoderConfig`.
_FAMILIES: dict[type[Any], Callable[[Any], Encoder]] = {
    VitConfig: Encoder,
    RelativeVitConfig: RelativeEncoder,
    HieraConfig: HieraEncoder,
}
_ADAPTER: pydantic.TypeAdapter[EncoderSize] = pydantic.TypeAdapter(EncoderConfig)


def build_encoder(config: EncoderSize) -> Encoder:
    """A freshly initialised encoder (from torch's generator) of whatever family the configuration describes."""
    return _FAMILIES[type(config)](config)


def parse_encoder(facts: object) -> EncoderSize:
    """The configuration that a run recorded under `encoder`. Raises pydantic.ValidationError."""
    return _ADAPTER.validate_python(facts)
