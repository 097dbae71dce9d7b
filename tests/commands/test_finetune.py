"""Fine-tuning from a pre-trained run: relative positions that are added to it, and what is refused before images are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import edgemim
from edgemim.commands.finetune import build
from edgemim.errors import UserError
from edgemim.tasks import LabelledData, load_task

SMALL = {"batch_size": 32, "workers": 0, "warmup_epochs": 0, "epochs": 1, "log_every": 1}
FORMS = {
    "study": "block",
    "shared alone": {"offsets": "shared", "absolute_positions": False, "key_bias": False},
}


@pytest.fixture(scope="module", params=["vit_nano", "vit_nano_rel"])
def pretrained(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that a few steps were pre-trained, plain or with relative positions."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    settings = {**SMALL, "data": photos, "encoder": request.param, "out": out, "picture_every": 0, "knn_every": 0}
    edgemim.pretrain(edgemim.PretrainConfig.model_validate({**settings, "base_lr": 1e-2}))
    return out


def config_of(**changes: object) -> edgemim.FinetuneConfig:
    return edgemim.FinetuneConfig.model_validate({**SMALL, **changes})


def architecture(run: Path) -> dict:
    return json.loads((run / "model" / "model.json").read_text())["architecture"]["vit"]


@pytest.mark.parametrize("pretrained", ["vit_nano"], indirect=True)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_tables_start_at_zero_beside_what_the_encoder_knows(pretrained: Path, photos: Path, form: object) -> None:
    data = LabelledData.open(photos)
    plain, _ = build(config_of(init=str(pretrained)), data)
    task, note = build(config_of(init=str(pretrained), relative_positions=form), data)
    tables = {name: p for name, p in task.model.named_parameters() if name.endswith("bias_table")}
    assert len(tables) == (2 if form == "block" else 1)
    assert not any(table.any() for table in tables.values())
    kept = {name: p for name, p in plain.model.named_parameters() if "qkv.bias" not in name}
    own = dict(task.model.named_parameters())
    for name in kept.keys() & own.keys() - {"head.weight", "head.bias"}:
        assert (own[name] == kept[name]).all(), name
    assert kept.keys() - own.keys() == (set() if form == "block" else {"pos_embed"})
    if form == "block":  # nothing is lost, nothing is added yet: the same features
        images = next(plain.evaluation_batches(8))[0]
        import torch

        x = torch.from_numpy(images)
        ours, theirs = (m.eval().forward_features(x) for m in (task.model, plain.model))  # pyright: ignore
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    else:
        assert "pos_embed" in note and "k_bias" in note  # what is left behind is said


def test_a_run_with_relative_positions_is_trained_saved_and_exported(
    pretrained: Path, photos: Path, tmp_path: Path
) -> None:
    """Of an encoder that gains tables and of one that was pre-trained with them."""
    gains = "rel" not in pretrained.parent.name
    edgemim.finetune(
        config_of(
            data=photos,
            init=str(pretrained),
            out=tmp_path / "run",
            base_lr=2e-2,
            relative_positions=FORMS["shared alone"] if gains else None,
        )
    )
    facts = architecture(tmp_path / "run")
    assert facts["name"] == "relative_vit"
    assert facts["absolute_positions"] is not gains
    task = load_task(tmp_path / "run")
    tables = [p for name, p in task.exported.named_parameters() if name.endswith("bias_table")]
    assert len(tables) == (1 if gains else 2)
    assert all(table.any() for table in tables)  # they learnt
    result = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    evaluated = edgemim.evaluate(edgemim.EvaluateConfig(run=tmp_path / "run"))
    assert evaluated["top1"] == pytest.approx(result["top1"], abs=1e-6)
    edgemim.export_model(edgemim.ExportConfig(run=tmp_path / "run", out=tmp_path / "artifact"))  # parity is its gate
    manifest = edgemim.Artifact.open(tmp_path / "artifact").manifest
    assert "onnx-fp32" in manifest.files


@pytest.mark.parametrize("pretrained", ["vit_nano_rel"], indirect=True)
def test_positions_that_cannot_be_added_are_refused_before_images_are_looked_for(
    pretrained: Path, tmp_path: Path
) -> None:
    nowhere = {"data": tmp_path / "no_such_folder", "relative_positions": "block", "out": tmp_path / "out"}
    for changes, sentence in (
        ({"init": "timm:vit_tiny_patch16_224"}, "timm's own positions"),
        ({"init": "scratch", "encoder": "vit_nano_rel"}, "to a plain vision transformer, not to a relative_vit;"),
        ({"init": "scratch", "encoder": "hiera_micro_32"}, "to a plain vision transformer, not to a hiera;"),
        ({"init": str(pretrained)}, f"not to a relative_vit as {pretrained} holds"),
    ):
        with pytest.raises(UserError, match=sentence):
            edgemim.finetune(config_of(**nowhere, **changes))
    assert not (tmp_path / "out").exists()


def test_unknown_forms_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'shared'"):
        config_of(relative_positions="share")
    (tmp_path / "positions.yaml").write_text("offsets: both\nkey_bias: false\n")
    assert config_of(relative_positions=str(tmp_path / "positions.yaml")).relative_positions == edgemim_positions()


def edgemim_positions():
    from edgemim.models.sizes import RelativePositions

    return RelativePositions(offsets="both", key_bias=False)
