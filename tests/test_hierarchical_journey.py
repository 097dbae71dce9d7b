"""The hierarchical encoder from the command line on real photos: pre-trained, resumed, fine-tuned, probed, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

import edgemim  # noqa: E402
from edgemim.cli import main  # noqa: E402

SMALL = ["--log-every", "1", "--batch-size", "32", "--workers", "0", "--warmup-epochs", "1", "--device", "cpu"]
PRETRAIN = [*SMALL, "--encoder", "hiera_micro_32", "--method", "mae", "--method.mask-ratio", "0.4"]


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def folders(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hierarchical")
    run("pretrain", "--data", photos, *PRETRAIN, "--epochs", 3, "--base-lr", 4e-3, "--out", root / "pretrain")
    run("finetune", "--init", root / "pretrain", "--data", photos, *SMALL, "--epochs", 4, "--out", root / "finetune")
    run("export", root / "finetune", "--onnx", "--out", root / "artifact")
    return {name: root / name for name in ("pretrain", "finetune", "artifact")}


def test_the_encoder_is_written_in_timms_names(folders: dict[str, Path]) -> None:
    import timm

    state = load_file(folders["pretrain"] / "model" / "model.safetensors")
    options = {"embed_dim": 16, "stages": (1, 1, 2, 2), "img_size": (32, 32), "num_classes": 0}
    patches = {"patch_kernel": (3, 3), "patch_stride": (1, 1), "patch_padding": (1, 1)}
    timm.create_model("hiera_tiny_224", **options, **patches).load_state_dict(state, strict=True)
    lines = [json.loads(line) for line in (folders["pretrain"] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert list((folders["pretrain"] / "pictures").glob("reconstruction-*.png"))


def test_fine_tuning_takes_every_tensor_and_export_passes_its_gate(folders: dict[str, Path]) -> None:
    record = json.loads((folders["finetune"] / "run.json").read_text())
    assert "83 tensors loaded; new: head.fc.weight, head.fc.bias" in record["results"]["init"]
    artifact = edgemim.Artifact.open(folders["artifact"])
    assert list(artifact.manifest.labels) == ["astronaut", "chelsea", "coffee", "rocket"]


def test_blocks_of_several_widths_are_probed(folders: dict[str, Path], photos: Path) -> None:
    found = edgemim.probe(edgemim.ProbeConfig(run=folders["pretrain"], data=photos, blocks=(1, 4, 6), k=5))
    assert all(0 < found[f"knn_top1_block{block}"] <= 100 for block in (1, 4, 6))


def test_a_run_of_it_teaches_another(folders: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    teacher = ["--teacher", "checkpoint", "--teacher.path", folders["pretrain"]]
    words = [*SMALL, "--encoder", "hiera_micro_32", *teacher, "--epochs", 0.25, "--warmup-epochs", 0.1]
    run("pretrain", "--data", photos, *words, "--method", "d_mae", "--out", tmp_path / "d_mae")
    assert (tmp_path / "d_mae" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("method", ["mff", "mirl", "simmim", "maskfeat", "beit", "mocov3"])
def test_what_makes_no_sense_is_refused_before_anything_is_read(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no_such_folder"
    assert main(["pretrain", "--data", str(missing), "--encoder", "hiera_tiny", "--method", method]) == 2
    words = capsys.readouterr().err
    assert f"method {method} does not run on encoder hiera" in words and "give --method mae" in words
    assert "no_such_folder" not in words
