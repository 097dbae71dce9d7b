import pytest
import timm
import torch

from edgemim.config import Config, parse
from edgemim.errors import UserError
from edgemim.teachers import EfficientNetLiteTeacher, TeacherConfig, TimmTeacher


class Holder(Config):
    """A verb that takes a teacher."""

    teacher: TeacherConfig = EfficientNetLiteTeacher()
    """The teacher."""


def test_any_timm_name_is_a_teacher_on_the_command_line():
    assert parse(Holder, ["--teacher", "resnet18.a1_in1k"], prog="x").teacher == TimmTeacher(model="resnet18.a1_in1k")
    assert parse(Holder, ["--teacher=efficientnet_lite1"], prog="x").teacher == EfficientNetLiteTeacher(variant="lite1")
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        parse(Holder, ["--teacher", "eficientnet_lite0"], prog="x")


def test_unknown_name_comes_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        TimmTeacher(model="resnet-18").build(64, (8, 8))


def test_failed_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nlong traceback")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="no route to host; with no network") as caught:
        TimmTeacher(model="resnet18").build(64, (8, 8))
    assert "\n" not in str(caught.value)


def test_random_weights_on_request():
    teacher = TimmTeacher(model="test_resnet", pretrained=False, input_size=128).build(64, (8, 8))
    assert (teacher.grid, teacher.input_size) == ((8, 8), (128, 128))
    assert "test_resnet: 8×8 features" in teacher.summary


def test_a_convolutional_network_dilates_on_request():
    """The same function on a finer grid: what the strided network computes stands at every second place."""
    maps = []
    for keys, grid in (({"stage": 4}, (2, 2)), ({"output_stride": 16}, (4, 4))):
        torch.manual_seed(0)
        teacher = TimmTeacher(model="test_resnet", pretrained=False, **keys).build(64, grid)
        assert (teacher.stage, teacher.channels, teacher.input_size) == (4, 96, (64, 64))
        x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        maps.append(teacher(x).unflatten(1, grid))
    torch.testing.assert_close(maps[1][:, ::2, ::2], maps[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(maps[1][:, 1::2, 1::2], maps[0], rtol=1e-2)
    with pytest.raises(UserError, match="'test_vit' has no output stride 16") as caught:
        TimmTeacher(model="test_vit", pretrained=False, output_stride=16).build(160, (10, 10))
    assert "\n" not in str(caught.value)
