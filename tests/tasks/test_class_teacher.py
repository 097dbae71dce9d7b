"""Teachers of classifiers: a fine-tuned run, a timm model, and what cannot be one."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from small_run import PHOTOS, small_run  # noqa: E402
from small_segmentation import small_segmentation_run  # noqa: E402

from edgemim.data.folders import scan_folder  # noqa: E402
from edgemim.edge.images import Preprocessing  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.tasks import load_task  # noqa: E402
from edgemim.tasks.class_teacher import open_class_teacher, random_class_teacher, top1_on  # noqa: E402
from edgemim.tasks.distillation import DistillationConfig  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.getbasetemp() / "small_run")


def test_a_run_answers_as_itself_whatever_the_order_of_classes(run: Path) -> None:
    task, held = load_task(run), scan_folder(run.parent / "data" / "val")
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = task.predict(images)  # pyright: ignore
    config = DistillationConfig(teacher=str(run))
    torch.testing.assert_close(open_class_teacher(config, PHOTOS)(images / 255), expected)
    backwards = open_class_teacher(config, PHOTOS[::-1])
    torch.testing.assert_close(backwards(images / 255), expected.flip(1))
    accuracy, seen = top1_on(open_class_teacher(config, PHOTOS), held, task.preprocessing, CPU, limit=80)
    assert seen == 80
    assert accuracy > 80  # what it learnt: chance is 25
    assert top1_on(backwards, held, task.preprocessing, CPU, limit=80)[0] < 20  # asked for others


def test_a_timm_model_brings_its_own_normalisation_and_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    config = DistillationConfig(teacher="timm:test_vit", weights=tmp_path / "weights.safetensors")
    teacher = open_class_teacher(config, PHOTOS)
    facts = model.pretrained_cfg
    assert teacher.image_size == facts["input_size"][-1] == 160
    images = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(facts[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        torch.testing.assert_close(teacher(images), model((images - mean) / std))
    assert "test_vit" in teacher.summary
    assert Preprocessing(image_size=160).image_size == teacher.image_size


def test_what_cannot_teach_is_one_sentence(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        return real(name, pretrained=False, **options)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", made)
    pixels = small_segmentation_run(tmp_path / "small")
    for given, labels, sentence in (
        ({"teacher": str(tmp_path / "no")}, PHOTOS, "distillation.teacher: no run folder at"),
        ({"teacher": "resnet18"}, PHOTOS, "timm's model is timm:resnet18"),
        ({"teacher": "timm:resnet1"}, PHOTOS, "timm knows no model 'resnet1'"),
        ({"teacher": "timm:test_vit"}, PHOTOS, "tells 1000 classes apart, --data has 4; fine-tune it"),
        ({"teacher": str(run), "weights": "file"}, PHOTOS, "a run brings its own"),
        ({"teacher": str(run)}, ("astronaut", "chelsea"), "'coffee' is on one side alone"),
        ({"teacher": str(pixels)}, PHOTOS, "holds a segmentation model, not a classifier"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            open_class_teacher(DistillationConfig.model_validate(given), labels)
        assert "\n" not in str(caught.value)


def test_the_network_alone_for_counting(run: Path, tmp_path: Path) -> None:
    whole = open_class_teacher(DistillationConfig(teacher=str(run)), PHOTOS)
    with torch.device("meta"):
        ours, timms = random_class_teacher(str(run), 4), random_class_teacher("timm:test_vit", 4)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in whole.parameters()]
    for teacher, size in ((ours, 64), (timms, 160)):
        assert teacher.image_size == size
        assert all(p.is_meta and not p.requires_grad for p in teacher.parameters())
    with pytest.raises(UserError, match="holds a segmentation model"):
        random_class_teacher(str(small_segmentation_run(tmp_path / "small")), 4)
