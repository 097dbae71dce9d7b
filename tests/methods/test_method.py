"""What every method says of its teacher."""

from __future__ import annotations

import pytest
from test_every_method import METHODS

from edgemim.config import Config
from edgemim.errors import UserError
from edgemim.methods.deepmim import DeepMimConfig
from edgemim.models.sizes import SIZES
from edgemim.teachers import EfficientNetLiteTeacher, MaskedTeacher, TimmTeacher


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_teacher_is_built_in_the_kind_that_is_read(method: type[Config]) -> None:
    config, size = method(), SIZES["vit_micro"]
    if config.teacher_kind == "none":  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(UserError, match=r"leave --teacher out"):
            config.build_teacher(TimmTeacher(), size)  # pyright: ignore[reportAttributeAccessIssue]
    elif config.teacher_kind == "masked":  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(UserError, match="convolutional"):
            config.build_teacher(EfficientNetLiteTeacher(), size)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        made = config.build_teacher(TimmTeacher(model="test_resnet", pretrained=False), size)  # pyright: ignore
        assert made.grid == size.grid  # pyright: ignore[reportAttributeAccessIssue]
        assert not isinstance(made, MaskedTeacher)


def test_deepmims_teacher_follows_its_target() -> None:
    kinds = [DeepMimConfig(target=target).teacher_kind for target in ("pixel", "hybrid", "feature")]
    assert kinds == ["none", "reconstruction", "features"]
