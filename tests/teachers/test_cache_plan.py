"""What a cache is of, how large it would be, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from edgemim.data.folders import scan_folder
from edgemim.data.transforms import PretrainTransform
from edgemim.errors import UserError
from edgemim.teachers import Teacher, TimmTeacher
from edgemim.teachers.cache_plan import cache_identity, check_cacheable, check_room
from edgemim.teachers.store import FeatureStore, store_name
from edgemim.teachers.teacher import build_teacher

VIEW = PretrainTransform(crop="none", flip=False)


def teacher_of(seed: int = 0, **keys) -> Teacher:
    torch.manual_seed(seed)
    return TimmTeacher(model="test_resnet", pretrained=False, **keys).build(64, (8, 8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": "random_resized"}, "transform.crop random_resized"),
        ({"crop": "simple_resized"}, "transform.crop simple_resized"),
        ({"flip": True}, "transform.flip true"),
        ({"interpolation": "random"}, "transform.interpolation random"),
    ],
)
def test_a_view_that_changes_is_refused(change: dict, words: str) -> None:
    check_cacheable(VIEW)
    with pytest.raises(UserError, match=words) as caught:
        check_cacheable(VIEW.model_copy(update=change))
    assert "\n" not in str(caught.value)


def test_what_a_cache_is_of(photos: Path, tmp_path: Path) -> None:
    """The same weights and images are the same wherever they lie; anything else that a feature depends on is not."""

    def name(teacher: Teacher, folder: Path, view: PretrainTransform = VIEW, size: int = 64) -> str:
        return store_name(*cache_identity(teacher, scan_folder(folder, cache=False), view, size))

    base = name(teacher_of(), photos)
    shutil.copytree(photos, tmp_path / "moved")
    assert name(teacher_of(), tmp_path / "moved") == base
    changed = tmp_path / "changed"
    shutil.copytree(photos, changed)
    first = scan_folder(changed, cache=False).path(0)
    first.write_bytes((changed / "rocket" / "02.png").read_bytes())
    fewer = tmp_path / "fewer"
    shutil.copytree(photos, fewer)
    (fewer / "rocket" / "02.png").unlink()
    others = [
        name(teacher_of(1), photos),
        name(teacher_of(stage=2), photos),
        name(teacher_of(), changed),
        name(teacher_of(), fewer),
        name(teacher_of(), photos, VIEW.model_copy(update={"interpolation": "bilinear"})),
        name(teacher_of(), photos, size=72),
    ]
    teacher = teacher_of()
    teacher.std *= 1.5
    others.append(name(teacher, photos))
    assert len({base, *others}) == len(others) + 1


def test_the_same_weights_in_another_network_are_another_function(photos: Path) -> None:
    """Attention heads and dilation leave no trace in the weights."""
    folder = scan_folder(photos, cache=False)

    def name(model: torch.nn.Module) -> str:
        model.load_state_dict(weights, strict=True)
        teacher = build_teacher(model, "same", image_size=160, student_grid=(10, 10), stage=3, input_size=None)
        return store_name(*cache_identity(teacher, folder, VIEW, 160))

    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    made = [timm.create_model("test_vit", num_classes=0, num_heads=heads) for heads in (2, 2, 4)]
    first, again, more_heads = (name(model) for model in made)
    assert first == again != more_heads


def test_the_estimate_comes_before_the_disk_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, identity = (1_281_167, 196, 1024), {"teacher": "a"}
    root = tmp_path / "not" / "there"
    with pytest.raises(
        UserError, match=r"1,281,167 images × 196 tokens × 1024 channels .* are 479 GiB.*-gib 479"
    ) as caught:
        check_room(root, identity, shape, 20.0)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40 - 2**30, 2**30))  # pyright: ignore
    with pytest.raises(UserError, match="has 1 GiB free"):
        check_room(root, identity, shape, 500.0)
    assert "are 0.000387 GiB" in check_room(root, identity, (1000, 2, 100), 20.0)  # 1000 × (400 + 16) bytes
    assert not root.exists()


def test_what_is_there_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, identity = (64, 32, 64), {"teacher": "a"}
    store = FeatureStore.open(tmp_path, identity, shape)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**17))  # pyright: ignore
    with pytest.raises(UserError, match="does not fit"):
        check_room(tmp_path, identity, shape, 1.0)
    for index in range(64):
        store.write(index, np.zeros(3, np.uint8), np.ones(shape[1:], np.float16))
    assert "free" in check_room(tmp_path, identity, shape, 1.0)
