"""Sizes of trackers: what fits together, what is refused, and the names."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from edgemim.config import Config, parse
from edgemim.models.sizes import SIZES, HieraConfig, RelativeVitConfig, VitConfig
from edgemim.models.tracker_sizes import TRACKER_FORMS, TRACKER_SIZES, TrackerForm, TrackerFormConfig, TrackerSize


def test_the_published_tracker_is_the_default() -> None:
    size = TrackerForm().on(VitConfig())
    assert (size.template_grid, size.search_grid) == (8, 16)
    assert size.drops == (4, 7, 10)  # zero-based 3, 6, 9 in OSTrack's settings
    assert size.keeps == {4: 0.7, 7: 0.7, 10: 0.7}
    assert size.encoder.heads == 12


@pytest.mark.parametrize(("depth", "drops"), [(4, (2, 3, 4)), (2, (1, 2)), (24, (7, 13, 19))])
def test_elimination_follows_the_depth(depth: int, drops: tuple[int, ...]) -> None:
    assert TrackerForm().on(VitConfig(depth=depth)).drops == drops


def test_each_block_may_keep_its_own_share() -> None:
    size = TrackerForm(elimination_blocks=(6, 3), keep=(0.5, 0.9)).on(VitConfig())
    assert size.keeps == {3: 0.5, 6: 0.9}


@pytest.mark.parametrize("form", [TrackerForm(attention="cached"), TrackerForm(elimination=False)])
def test_nothing_is_dropped_where_the_template_is_cached_or_elimination_is_off(form: TrackerForm) -> None:
    assert form.on(VitConfig()).drops == ()
    assert form.on(VitConfig()).keeps == {}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"head_width": 20}, "not a multiple of 8"),
        ({"keep": (0.0,)}, "share above 0"),
        ({"attention": "cached", "elimination_blocks": (4,)}, "no effect with cached attention"),
        ({"search_size": 250}, "search_size 250 is not a multiple"),
        ({"elimination_blocks": (4, 13)}, r"\[13\] are not among"),
        ({"matching_blocks": (0,)}, r"matching_blocks \[0\] are not among"),
        ({"keep": (0.5, 0.6)}, "names 2 shares, elimination has 3 blocks"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=sentence):
        TrackerForm(**settings).on(VitConfig())


@pytest.mark.parametrize("encoder", [RelativeVitConfig(), HieraConfig()])
def test_only_a_plain_encoder_carries_a_tracker(encoder: Config) -> None:
    with pytest.raises(pydantic.ValidationError):
        TrackerForm().on(encoder)  # pyright: ignore[reportArgumentType]


def test_sizes_survive_being_written_down() -> None:
    for size in TRACKER_SIZES.values():
        assert TrackerSize.model_validate(size.model_dump(mode="json")) == size


def test_the_lighter_forms_are_lighter() -> None:
    assert TRACKER_FORMS["thin"].head_width < TRACKER_FORMS["published"].head_width
    small = TRACKER_FORMS["cached_small"]
    assert (small.template_size, small.search_size, small.attention) == (96, 192, "cached")
    assert TRACKER_SIZES["vit_nano"].encoder == SIZES["vit_nano"]


class Holder(Config):
    """A configuration that has a tracker in it."""

    tracker: TrackerFormConfig = TrackerForm()
    """The tracker."""


def test_a_form_is_named_changed_or_read_from_a_file(tmp_path: Path) -> None:
    assert parse(Holder, ["--tracker", "small"], prog="t").tracker == TRACKER_FORMS["small"]
    changed = parse(Holder, ["--tracker", "small", "--tracker.head-width", "32"], prog="t").tracker
    assert (changed.head_width, changed.search_size) == (32, 192)
    (tmp_path / "form.yaml").write_text("search_size: 320\n")
    assert parse(Holder, ["--tracker", str(tmp_path / "form.yaml")], prog="t").tracker.search_size == 320
