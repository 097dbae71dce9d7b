"""What every method's configuration answers."""

from __future__ import annotations

from typing import get_args

import pytest
from tiny_training import NORMALIZATION, nano_encoder

from edgemim.methods import FeatureDistillConfig, MaeConfig
from edgemim.methods.method import Method, TeacherKind
from tests.methods.test_every_method import METHODS


def test_every_registered_method_says_which_teacher_it_takes() -> None:
    for cls in METHODS:
        assert issubclass(cls, Method)
        assert cls().teacher_kind in get_args(TeacherKind)
    assert MaeConfig().teacher_kind == "none"
    assert FeatureDistillConfig().teacher_kind == "features"


def test_names_are_distinct_and_their_own() -> None:
    names = [cls().name for cls in METHODS]  # pyright: ignore
    assert len(set(names)) == len(METHODS)


def test_a_method_composes_its_own_model() -> None:
    with pytest.raises(NotImplementedError):
        Method().build(nano_encoder(), NORMALIZATION, None)
