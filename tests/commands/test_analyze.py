"""`edgemim analyze token-diversity`: teachers named in every way, a seeded balanced sample, results on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import nano_encoder

from edgemim.cli import main
from edgemim.commands.analyze import TokenDiversityConfig, open_sample, read_teacher, token_diversity
from edgemim.config import load_yaml
from edgemim.errors import UserError
from edgemim.models.sizes import VitConfig
from edgemim.models.weights import save_model
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, TimmTeacher

RANDOM_RESNET = "{name: timm, model: test_resnet, pretrained: false}"
SMALL = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=64)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A pre-training run with random weights."""
    facts = {"kind": "encoder", "encoder": SMALL.model_dump()}
    save_model(tmp_path / "pre" / "model", nano_encoder(SMALL).vit.state_dict(), facts)
    return tmp_path / "pre"


def test_from_the_command_line(photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["analyze", "token-diversity", "--teacher", RANDOM_RESNET, "--teacher", str(run), "--teacher", str(run)]
    words += ["--data", str(photos), "--images", "10", "--image-size", "64", "--patch-size", "8", "--out", str(out)]
    assert main(words) == 0
    text = capsys.readouterr().out
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["results"]["images"], record["results"]["grid"]) == ("done", 10, [8, 8])
    found = json.loads((out / "token_diversity.json").read_text())
    names = ["test_resnet (random)", "pre", "pre, stage 1 at 64 px"]
    assert list(found["teachers"]) == names
    for kind in ("raw", "centred"):
        figures = {name: row["diversity"][kind]["mean"] for name, row in found["teachers"].items()}
        assert found["ranking"][kind] == sorted(figures, key=lambda name: -figures[name])
        assert figures["pre"] == figures["pre, stage 1 at 64 px"]  # the same weights, the same images
        assert len(found["teachers"]["pre"]["diversity"][kind]["values"]) == 10
        assert f"{figures['pre']:.3f} ±" in text
    assert Image.open(out / "token_diversity.png").width > 500
    assert text.splitlines()[-1].startswith("next: edgemim pretrain --method img2vec --teacher ")


def test_the_figures_are_those_of_the_teacher_on_the_sample(photos: Path, run: Path, tmp_path: Path) -> None:
    config = TokenDiversityConfig(
        teacher=(str(run),), data=photos, images=6, image_size=64, patch_size=8, out=tmp_path / "a", seed=3
    )
    found = token_diversity(config)["teachers"]["pre"]
    assert token_diversity(config.model_copy(update={"out": tmp_path / "b"}))["teachers"]["pre"] == found
    folder = open_sample(config)
    images = np.stack([np.asarray(Image.open(folder.path(i)).convert("RGB")) for i in range(len(folder))])
    tokens = CheckpointTeacher(path=run).build(64, (8, 8))(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    pairs = (cosines.sum((1, 2)) - 64) / (64 * 63)
    assert found["diversity"]["raw"]["mean"] == pytest.approx(float((1 - pairs).mean()), rel=1e-4)


def test_the_sample_is_balanced_seeded_and_held_out(photos: Path, tmp_path: Path) -> None:
    def sample(seed: int, images: int = 12) -> list[str]:
        folder = open_sample(TokenDiversityConfig(data=photos, images=images, seed=seed))
        assert set(np.bincount(folder.labels)) <= {images // 4, images // 4 + 1}
        return [str(folder.path(i)) for i in range(len(folder))]

    assert sample(0) == sample(0) != sample(1)
    assert len(sample(0, 10)) == 10
    split = tmp_path / "split"
    for part in ("train", "val"):
        for name in ("a", "b"):
            (split / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(split / part / name / "x.png")
    held = open_sample(TokenDiversityConfig(data=split, images=99))
    assert [held.path(i).parts[-3] for i in range(len(held))] == ["val", "val"]


def test_teachers_by_name_keys_and_place(run: Path) -> None:
    assert read_teacher("efficientnet_lite1") == EfficientNetLiteTeacher(variant="lite1")
    assert read_teacher("resnet50.a1_in1k") == TimmTeacher(model="resnet50.a1_in1k")
    assert read_teacher(RANDOM_RESNET) == TimmTeacher(model="test_resnet", pretrained=False)
    assert read_teacher(str(run)) == CheckpointTeacher(path=run)
    keys = "{name: checkpoint, model: resnet50, path: a.pth, stage: 3}"
    assert read_teacher(keys) == CheckpointTeacher(model="resnet50", path=Path("a.pth"), stage=3)


def test_a_yaml_list_holds_names_and_mappings(tmp_path: Path) -> None:
    recipe = tmp_path / "study.yaml"
    recipe.write_text("teacher:\n- efficientnet_lite0\n- {name: timm, model: resnet18, pretrained: false}\n")
    config = load_yaml(recipe, TokenDiversityConfig)
    assert [read_teacher(text) for text in config.teacher] == [
        EfficientNetLiteTeacher(),
        TimmTeacher(model="resnet18", pretrained=False),
    ]
    recipe.write_text("teacher: efficientnet_lite0\n")
    assert load_yaml(recipe, TokenDiversityConfig).teacher == ("efficientnet_lite0",)


def test_mistakes_are_one_sentence(photos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.touch()
    for text, words in (
        ("efficientnet_lit9", "did you mean 'efficientnet_lite"),
        ("{name: timm, modle: resnet18}", "unknown key 'teacher.modle'.*did you mean 'model'"),
        ("{name: timm", "not valid YAML"),
        (str(weights), "does not say what network"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_teacher(text)
        assert "\n" not in str(caught.value)
    good = TokenDiversityConfig(teacher=(RANDOM_RESNET,), data=photos, out=tmp_path / "out")
    for change, words in (
        ({"teacher": ()}, "give --teacher"),
        ({"data": None}, "give --data"),
        ({"image_size": 65}, "not a multiple"),
        ({"data": tmp_path / "none"}, "no folder at"),
    ):
        with pytest.raises(UserError, match=words):
            token_diversity(good.model_copy(update=change))
    assert not (tmp_path / "out").exists()
