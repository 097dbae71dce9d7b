"""Fine-tuning a classifier: relative positions that a pre-trained run gains, learnt, saved and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import edgemim
from edgemim.tasks import load_task

SMALL = {"batch_size": 32, "workers": 0, "warmup_epochs": 0, "epochs": 1, "log_every": 1}
SHARED_ALONE = {"offsets": "shared", "absolute_positions": False, "key_bias": False}


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
            relative_positions=SHARED_ALONE if gains else None,
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


def test_unknown_forms_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'shared'"):
        config_of(relative_positions="share")
    (tmp_path / "positions.yaml").write_text("offsets: both\nkey_bias: false\n")
    assert config_of(relative_positions=str(tmp_path / "positions.yaml")).relative_positions == edgemim_positions()


def edgemim_positions():
    from edgemim.models.sizes import RelativePositions

    return RelativePositions(offsets="both", key_bias=False)
