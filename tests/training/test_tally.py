"""Counts of what could not be read: shared, bounded, and judged on a fair sample only."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NANO  # noqa: F401 (one thread)

from edgemim.errors import UserError
from edgemim.training.distributed import World
from edgemim.training.tally import Tally

ALONE = World(0, 1, torch.device("cpu"))


def test_draws_are_counted_and_files_listed_once() -> None:
    tally = Tally(seen=10)
    tally.share([("a.jpg", "cut short"), ("b.jpg", "empty")], ALONE)
    tally.share([("a.jpg", "cut short")], ALONE)
    assert tally.unreadable == 3
    assert tally.reasons == {"a.jpg": "cut short", "b.jpg": "empty"}


def test_the_list_of_files_stays_bounded() -> None:
    tally = Tally()
    tally.share([(f"{i}.jpg", "odd") for i in range(5000)], ALONE)
    assert tally.unreadable == 5000
    assert len(tally.reasons) == 1000


@pytest.mark.parametrize(
    ("seen", "one_pass", "unreadable", "ends"),
    [
        (50, 100, 25, False),  # half a pass says too little
        (100, 100, 1, False),  # at the limit
        (100, 100, 2, True),
        (999, 10**6, 500, False),
        (1000, 10**6, 11, True),  # a thousand draws of a large set say enough
        (10**6, 10**6, 10**4, False),
    ],
)
def test_the_limit_holds_on_a_fair_sample(seen: int, one_pass: int, unreadable: int, ends: bool) -> None:
    tally = Tally(seen=seen, unreadable=unreadable, reasons={"photos/x.jpg": "cut short"})
    if not ends:
        tally.check(0.01, one_pass)
        return
    with pytest.raises(UserError, match=r"limit 1\.0%.*photos/x\.jpg: cut short.*--max-unreadable") as error:
        tally.check(0.01, one_pass)
    assert "\n" not in str(error.value)


def test_it_is_plain_values_for_a_checkpoint() -> None:
    tally = Tally(seen=3, unreadable=1, reasons={"a": "b"}, nonfinite_steps=2, seconds=1.5)
    assert Tally(**vars(tally)) == tally


def test_an_empty_run_has_no_share() -> None:
    Tally().check(0.0, 0)
