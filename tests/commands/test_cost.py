"""Every recipe is counted, says so itself, and takes a step; hours, overrides and refusals of the verb."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")

import timm  # noqa: E402
from tiny_training import GridTeacher  # noqa: E402

from edgemim.analysis.throughput import training_step  # noqa: E402
from edgemim.analysis.weightless import weightless_teacher  # noqa: E402
from edgemim.cli import main  # noqa: E402
from edgemim.commands.cost import CostConfig, compose, cost, input_shape, read_recipe  # noqa: E402
from edgemim.commands.finetune import FinetuneConfig  # noqa: E402
from edgemim.commands.pretrain import PretrainConfig, build  # noqa: E402
from edgemim.config import Config, to_yaml  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.methods import MocoV3Config  # noqa: E402
from edgemim.methods.beit import BeitConfig  # noqa: E402
from edgemim.methods.decoders import TransformerDecoderConfig  # noqa: E402
from edgemim.methods.pretraining import PretrainObjective  # noqa: E402
from edgemim.models.sizes import SIZES, VitConfig  # noqa: E402
from edgemim.teachers import CheckpointTeacher, TimmTeacher  # noqa: E402

REPOSITORY = Path(__file__).parent.parent.parent
PRETRAIN = sorted((REPOSITORY / "configs/pretrain").glob("*.yaml"))
FINETUNE = sorted((REPOSITORY / "configs/finetune").glob("*.yaml"))
OWN = [*PRETRAIN, *FINETUNE]
CPU = torch.device("cpu")
_counted: dict[str, dict[str, Any]] = {}
_stepped: set[str] = set()


def network_of(config: Config) -> str:
    """What a recipe trains, its schedule left out."""
    fields = {"method", "encoder", "teacher", "init", "drop_path", "mixing", "relative_positions", "task"}
    return type(config).__name__ + json.dumps(config.model_dump(mode="json", include=fields), sort_keys=True)


def count(recipe: Path, out: Path) -> dict[str, Any]:
    """The verb's answer; recipes that differ in their schedule alone are counted once."""
    key = network_of(read_recipe(recipe))
    if key not in _counted:
        _counted[key] = cost(CostConfig(recipe=recipe, out=out))
    return _counted[key]


def slow_if_deep(recipe: Path) -> Any:
    """The deepest encoders take many seconds to be walked through."""
    deep = recipe.stem in ("mirl_vit_b_48_in1k", "mirl_vit_s_54_in1k")
    name = f"{recipe.parent.name}-{recipe.stem}"
    return pytest.param(recipe, id=name, marks=[pytest.mark.slow] if deep else [])


def test_a_folder_of_another_verb_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"verb": "convert"}')
    (tmp_path / "config.yaml").write_text("keep_head: false\n")
    with pytest.raises(UserError, match="a folder of `edgemim convert`, which trains nothing"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("recipe", map(slow_if_deep, OWN))
def test_every_recipe_is_counted_and_says_its_cost(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemim.analysis.cost._slope", lambda *_: 0.0)  # these are tested in tests/analysis
    monkeypatch.setattr("edgemim.analysis.cost._whole_image", lambda *_: None)
    found = count(recipe, tmp_path)
    assert found["device"] == "meta"
    assert found["training_gflop"] > found["forward_gflop"] > 0
    assert found["parts"]["encoder"]["parameters"] > 0
    config = read_recipe(recipe)
    assert isinstance(config, FinetuneConfig if recipe.parent.name == "finetune" else PretrainConfig)
    if isinstance(config, PretrainConfig):
        frozen = config.method.teacher_kind != "none" or config.method.name == "mocov3"
        assert (found["parts"]["teacher"]["parameters"] > 0) is frozen
        said = re.search(r"^# Cost: ([\d.]+) GFLOP an image", recipe.read_text(), re.MULTILINE)
        assert said, f"{recipe} does not say its cost"
        assert float(said[1]) == pytest.approx(found["training_gflop"], rel=0.006, abs=0.006)


def narrow(method: Any) -> Any:
    """A method whose decoders or heads are as deep as they were, but narrow."""
    decoder = getattr(method, "decoder", None)
    if isinstance(decoder, TransformerDecoderConfig):
        return method.model_copy(update={"decoder": decoder.model_copy(update={"width": 4 * decoder.heads})})
    return method.model_copy(update={"hidden_width": 64}) if isinstance(method, MocoV3Config) else method


def reduced(size: Any) -> Any:
    """An encoder of the same family and depth, narrow and with a small grid."""
    if isinstance(size, VitConfig):
        return size.model_copy(update={"width": 4 * size.heads, "image_size": 4 * size.patch_size})
    return SIZES["hiera_micro_32"]


def stand_in(recipe: PretrainConfig, size: Any) -> torch.nn.Module | None:
    """A small teacher of the kind that the method reads."""
    if recipe.teacher is None:
        return None
    if recipe.method.teacher_kind == "features":
        return GridTeacher(size.patch_size, size.grid[0])
    return weightless_teacher(recipe.method, CheckpointTeacher(), size)


@pytest.mark.parametrize("recipe", PRETRAIN, ids=lambda recipe: recipe.stem)
def test_every_recipe_takes_a_step_at_reduced_size(recipe: Path) -> None:
    config = read_recipe(recipe)
    assert isinstance(config, PretrainConfig)
    if network_of(config) in _stepped:
        return
    _stepped.add(network_of(config))
    # In bfloat16, in which a GPU would train.
    update = {"batch_size": 4, "accumulate": 1, "precision": "bf16"}
    update |= {"encoder": reduced(config.encoder), "method": narrow(config.method)}
    config = config.model_copy(update=update)
    torch.manual_seed(0)
    if isinstance(config.method, BeitConfig):  # its tokenizer is the user's
        model = compose(config, 0)[0]
        assert isinstance(model, PretrainObjective)
    else:
        model = build(config, CPU, stand_in(config, config.encoder))
    before = {name: p.detach().clone() for name, p in model.encoder.named_parameters() if p.requires_grad}
    training_step(model, config, CPU, input_shape(config))()
    after = dict(model.encoder.named_parameters())
    assert all(torch.isfinite(p).all() for p in after.values())
    assert sum(not torch.equal(p, after[name]) for name, p in before.items()) > len(before) / 2


def test_the_bare_verb_and_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["cost", "--encoder", "vit_nano", "--images", "1000", "--images-per-second", "50", "--json", "a.json"])
        == 0
    )
    found = json.loads(Path("a.json").read_text())
    assert found["hours"] == pytest.approx(1000 * 400 / 50 / 3600)
    assert found["total_petaflop"] == pytest.approx(1000 * 400 * found["training_gflop"] / 1e6)
    record = json.loads(Path("runs/cost/run.json").read_text())
    assert record["results"] == found
    text = capsys.readouterr().out
    assert "hours: 2.22 at 50.0 images/s" in text
    assert "next: edgemim pretrain" in text


def test_flags_change_the_recipe(tmp_path: Path) -> None:
    recipe = REPOSITORY / "configs/pretrain/mae_lite_vit_tiny_in1k.yaml"
    options = {"recipe": recipe, "encoder": SIZES["vit_nano"], "images": 10, "epochs": 2.0, "processes": 8}
    found = cost(CostConfig(**options, out=tmp_path))  # pyright: ignore[reportArgumentType]
    assert found["what"].startswith("mae, vit 48 x 2")
    assert (found["epochs"], found["images_of_a_process"], found["hours"]) == (2.0, 512, None)
    share = found["process_fp32_mib"] - found["process_bf16_mib"]
    slopes = found["memory"]["fp32_mib_per_image"] - found["memory"]["bf16_mib_per_image"]
    assert share == pytest.approx(512 * slopes)


def test_a_measured_throughput_makes_the_hours(tmp_path: Path) -> None:
    config = CostConfig(
        encoder=SIZES["vit_nano"],  # pyright: ignore[reportArgumentType]
        measure=True,
        measure_seconds=0.1,
        measure_batch=4,
        device="cpu",
        images=3600,
        epochs=1.0,
        out=tmp_path,
    )
    found = cost(config)
    assert found["measured"]["batch_size"] == 4
    assert found["hours"] == pytest.approx(1 / found["measured"]["images_per_s"])


def test_a_runs_folder_is_a_recipe(tmp_path: Path) -> None:
    for name, config in (("pre", PretrainConfig()), ("fine", FinetuneConfig(init="scratch"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(to_yaml(config))
        assert read_recipe(tmp_path / name) == config


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", 5_717_416),
        ("relative_positions: {offsets: block}\n", 5_717_416 + 12 * 732 * 12),
        ("encoder: hiera_tiny\n", 6_694_966),
    ],
)
def test_classifiers_have_the_published_number_of_parameters(tmp_path: Path, text: str, parameters: int) -> None:
    recipe = tmp_path / "fine.yaml"
    recipe.write_text(f"init: scratch\nlayer_decay: 0.85\n{text}")
    found = cost(CostConfig(recipe=recipe, out=tmp_path / "out"))
    assert sum(part["parameters"] for part in found["parts"].values()) == parameters


def test_a_timm_model_is_counted_with_its_own_head(tmp_path: Path) -> None:
    recipe = tmp_path / "fine.yaml"
    recipe.write_text("init: timm:test_vit\nlayer_decay: 0.75\n")
    found = cost(CostConfig(recipe=recipe, classes=7, out=tmp_path / "out"))
    head = found["parts"]["decoders and heads"]["parameters"]
    assert head % 7 == 0 and head > 0
    assert found["parts"]["encoder"]["parameters"] > head


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("method: mea\n", {}, "did you mean 'mae'"),
        ("epoch: 3\n", {}, "did you mean 'epochs'"),
        ("layer_decay: 0.8\n", {"method": PretrainConfig().method}, "leave --method out"),
        ("init: timm:vit_tiny_patch\n", {}, "timm knows no model 'vit_tiny_patch'"),
        ("method: feature_distill\n", {}, "needs a teacher"),
        ("method: {name: mae, mask_ratio: 0.999}\n", {}, "lower 'mask_ratio'"),
        ("teacher: resnet18\n", {}, "has no teacher"),
        ("method: d_mae\nencoder: vit_micro\n", {"teacher": TimmTeacher()}, "14 x 14"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, text: str, options: dict[str, Any], sentence: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        cost(CostConfig(recipe=recipe, out=tmp_path / "out", **options))
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "no.yaml" in capsys.readouterr().err


def test_a_classifiers_teacher_and_second_head_are_counted(tmp_path: Path) -> None:
    recipe = {"init": "scratch", "encoder": "vit_nano", "distillation": {"teacher": "timm:test_vit"}}
    plain, listening = (tmp_path / f"{name}.yaml" for name in ("plain", "listening"))
    plain.write_text(yaml.safe_dump({**recipe, "distillation": {}}))
    listening.write_text(yaml.safe_dump(recipe))
    alone, both = (cost(CostConfig(recipe=path, out=tmp_path / path.stem, classes=1000)) for path in (plain, listening))
    network = timm.create_model("test_vit")
    assert both["parts"]["teacher"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert both["parts"]["teacher"]["forward_gflop"] > 0
    assert both["parts"]["teacher"]["backward_gflop"] == 0
    assert alone["parts"]["teacher"]["parameters"] == 0
    trained = [
        sum(part["parameters"] for name, part in found["parts"].items() if name != "teacher") for found in (alone, both)
    ]
    width = SIZES["vit_nano"].width
    assert trained[1] - trained[0] == 2 * width + 1000 * width + 1000
