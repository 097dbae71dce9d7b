"""Configured sources: from YAML's plain values, with the published defaults, and what is no source refused."""

from __future__ import annotations

import pydantic
import pytest

from edgemim.data.tracking.config import PairsConfig


def test_the_defaults_are_the_published_ones() -> None:
    config = PairsConfig()
    assert (config.pairs_per_epoch, config.max_gap, config.sources) == (60_000, 200, ())
    transform = config.transform
    assert (transform.center_jitter, transform.scale_jitter) == (3, 0.25)
    assert (transform.grey_probability, transform.flip_probability, transform.brightness) == (0.05, 0.5, 0.2)


def test_plain_values_become_sources() -> None:
    config = PairsConfig.model_validate(
        {"sources": [{"layout": "lasot", "root": "lasot"}, {"root": "pets", "objects": "masks", "ratio": 2}]}
    )
    assert [source.layout for source in config.sources] == ["lasot", None] and config.sources[1].ratio == 2


@pytest.mark.parametrize("source", [{"layout": "vid"}, {"ratio": 0}, {"objects": "any"}, {"rot": "x"}])
def test_what_is_no_source_is_refused(source: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        PairsConfig.model_validate({"sources": [source]})
