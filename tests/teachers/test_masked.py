"""Teachers that see the student's visible patches: where they come from, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.models.build import build_encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import HieraConfig, VitConfig
from edgemim.models.weights import save_model
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, MaskedTeacher, TimmTeacher, masked_teacher

OTHER = VitConfig(width=40, depth=4, heads=5, patch_size=12, image_size=48)


def test_a_run_teaches_with_its_own_normalisation(tmp_path: Path) -> None:
    encoder = nano_encoder(OTHER)
    facts = {
        "kind": "encoder",
        "encoder": OTHER.model_dump(),
        "preprocessing": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    save_model(tmp_path / "model", encoder.vit.state_dict(), facts)
    opened = masked_teacher(CheckpointTeacher(path=tmp_path), OTHER)
    assert opened.normalization == Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert torch.equal(opened.encoder.vit.blocks[0].attn.qkv.weight, encoder.vit.blocks[0].attn.qkv.weight)
    with pytest.raises(UserError, match="4 x 4 patches, the student into 8 x 8"):
        masked_teacher(CheckpointTeacher(path=tmp_path), OTHER.model_copy(update={"image_size": 96}))


def test_a_timm_vision_transformer_teaches() -> None:
    torch.manual_seed(0)
    teacher = masked_teacher(TimmTeacher(model="test_vit", pretrained=False), VitConfig(patch_size=4, image_size=40))
    assert isinstance(teacher, MaskedTeacher)
    assert teacher.config.grid == (10, 10)
    assert "test_vit" in teacher.summary
    features = teacher(pixels(2, 40) / 255, mask_of(2, tokens=100), attention=[teacher.config.depth])
    assert features.attention[teacher.config.depth].shape == (2, teacher.config.heads, 26, 26)
    assert not features.tokens
    assert not teacher.train().training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_what_is_no_vision_transformer_is_refused() -> None:
    with pytest.raises(UserError, match="convolutional"):
        masked_teacher(EfficientNetLiteTeacher(), OTHER)
    with pytest.raises(UserError, match="ResNet"):
        masked_teacher(TimmTeacher(model="test_resnet", pretrained=False), OTHER)
    with pytest.raises(UserError, match=r"teacher\.path"):
        masked_teacher(CheckpointTeacher(), OTHER)


def test_a_hierarchical_student_has_a_hierarchical_teacher(tmp_path: Path) -> None:
    student = HieraConfig(embed_dim=8, stages=(1, 1, 2, 1))
    config = TimmTeacher(model="hiera_tiny_224", pretrained=False)
    teacher = masked_teacher(config, student)
    # timm's own pools once more, as a classifier does; the teacher is what was pre-trained.
    assert (teacher.config.grid, teacher.config.width, teacher.config.depth) == ((14, 14), 768, 12)
    own = student.model_copy(update={"embed_dim": 4})
    save_model(
        tmp_path / "model",
        build_encoder(own).vit.state_dict(),
        {"kind": "encoder", "encoder": own.model_dump(), "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    )
    assert masked_teacher(CheckpointTeacher(path=tmp_path), student).config == own
    with pytest.raises(UserError, match="is a hierarchical vision transformer and encoder vit a plain one"):
        masked_teacher(config, VitConfig())
    with pytest.raises(UserError, match="is a plain vision transformer and encoder hiera a hierarchical one"):
        masked_teacher(TimmTeacher(model="vit_tiny_patch16_224", pretrained=False), student)
