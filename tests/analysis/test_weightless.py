"""Teachers that can be counted and timed though their weights are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import NANO, keys_of

from edgemim.analysis.weightless import weightless_teacher
from edgemim.errors import UserError
from edgemim.methods import DeepMimConfig, DMaeConfig, FeatureDistillConfig, MaeConfig
from edgemim.methods.decoders import TransformerDecoderConfig
from edgemim.methods.masking import RandomMasking
from edgemim.models.encoder import TokenMask
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, TimmTeacher

META = torch.device("meta")


def test_a_pretrained_name_is_built_without_a_download() -> None:
    """The fixture against connections would fail it; the shapes are those of the real one."""
    with META:
        teacher = weightless_teacher(FeatureDistillConfig(), TimmTeacher(model="resnet18.a1_in1k"), NANO)
        features = teacher(torch.zeros(2, 3, 32, 32))
    assert features.is_meta
    assert features.shape == (2, 16, teacher.channels)


@pytest.mark.parametrize("config", [EfficientNetLiteTeacher(), CheckpointTeacher(model="resnet18", path=Path("no"))])
def test_a_missing_file_stands_for_its_architecture(config: CheckpointTeacher | EfficientNetLiteTeacher) -> None:
    with META:
        teacher = weightless_teacher(FeatureDistillConfig(), config, NANO)
        assert teacher(torch.zeros(1, 3, 32, 32)).shape[:2] == (1, 16)
    assert all(parameter.is_meta for parameter in teacher.parameters())


def test_one_that_runs_has_content() -> None:
    teacher = weightless_teacher(FeatureDistillConfig(), TimmTeacher(model="test_resnet"), NANO, runs=True)
    assert torch.isfinite(teacher(torch.rand(2, 3, 32, 32))).all()


def test_a_run_that_is_not_there_is_said_to_be_assumed() -> None:
    mask = RandomMasking()(keys_of(2), NANO.tokens)
    masked = weightless_teacher(DMaeConfig(), CheckpointTeacher(), NANO)
    assert masked.config == NANO
    assert "assumed" in masked.summary  # pyright: ignore[reportOperatorIssue]
    method = DeepMimConfig(target="hybrid", decoder=TransformerDecoderConfig(width=12, heads=3))
    whole = weightless_teacher(method, CheckpointTeacher(), NANO)
    assert whole(torch.rand(2, 3, 32, 32), TokenMask.of(mask.masked)).shape == (2, 16, 192)
    assert "assumed" in whole.summary  # pyright: ignore[reportOperatorIssue]


def test_what_cannot_be_known_is_refused() -> None:
    with pytest.raises(UserError, match=r"give --teacher\.path RUN"):
        weightless_teacher(FeatureDistillConfig(), CheckpointTeacher(), NANO)
    with pytest.raises(UserError, match="method mae has no teacher"):
        weightless_teacher(MaeConfig(), TimmTeacher(model="resnet18"), NANO)
    with pytest.raises(UserError, match="patches, the student into"), META:
        weightless_teacher(DMaeConfig(), TimmTeacher(model="vit_tiny_patch16_224"), NANO)
