"""A run's pairs, opened again: the same at every call, held-out ones apart, gone ones told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tracking_sets import write_folder

pytest.importorskip("torch")

from edgemim.errors import UserError
from edgemim.models.tracker_sizes import TRACKER_FORMS
from edgemim.tasks.tracking_pairs import open_run_pairs

FORM = TRACKER_FORMS["micro"]


def recorded(root: Path) -> dict:
    return {"data": str(root), "seed": 3, "val_share": 0.3, "task": {"name": "tracking", "pairs": {"held_pairs": 5}}}


def test_pairs_are_the_same_at_every_call_and_each_part_its_own(tmp_path: Path) -> None:
    write_folder(tmp_path / "walks", sequences=4)
    pairs = open_run_pairs(recorded(tmp_path / "walks"), None)
    assert pairs is not None
    first, again = list(pairs.held_out(FORM, 4)), list(pairs.held_out(FORM, 4))
    assert [pair.template.shape for pair in first] == [(3, 32, 32)] * 4 and first[0].search.shape == (3, 64, 64)
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert first[0].template_box.tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5], abs=0.2)
    assert not np.array_equal(first[0].search, next(pairs.training(FORM, 1)).search)


def test_pictures_that_are_gone(tmp_path: Path) -> None:
    assert open_run_pairs(recorded(tmp_path / "gone"), None) is None
    with pytest.raises(UserError, match="no folder at"):
        open_run_pairs(recorded(tmp_path / "gone"), tmp_path / "elsewhere")


def test_a_record_that_says_something_else(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    record["task"]["pairs"] = {"no_such_key": 1}
    with pytest.raises(UserError, match="does not say what its pairs are"):
        open_run_pairs(record, None)
