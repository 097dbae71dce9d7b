"""From pre-training to features in a file, by the commands alone; what features cannot have is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgemim.analysis.knn import knn_accuracy  # noqa: E402
from edgemim.cli import main  # noqa: E402
from edgemim.commands import predict_features  # noqa: E402
from edgemim.commands.predict import PredictConfig, predict  # noqa: E402
from edgemim.commands.predict_features import write_features  # noqa: E402
from edgemim.edge.artifact import Artifact  # noqa: E402
from edgemim.edge.images import load_image  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.weights import load_encoder  # noqa: E402

SMALL = ["--encoder", "vit_nano", "--epochs", "1", "--batch-size", "40", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def folders(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pre-training run and its artifact."""
    run = tmp_path_factory.mktemp("features") / "pre"
    assert main(["pretrain", "--data", str(photos), *SMALL, "--warmup-epochs", "0", "--out", str(run)]) == 0
    assert main(["export", str(run), "--onnx", "--fp16", "--parity-images", "40"]) == 0
    return run, run / "artifact"


def test_the_artifact_was_compared_with_pytorch(folders: tuple[Path, Path]) -> None:
    manifest = Artifact.open(folders[1]).manifest
    assert (manifest.task, manifest.output_names, manifest.labels) == ("features", ("features",), ())
    assert set(manifest.files) == {"onnx-fp32", "onnx-fp16"}
    parity = manifest.parity
    assert parity["images"] == 40
    assert parity["relative_error"] <= 1e-4
    # the exporter cuts the class token's row off so small a table of positions, which is then no tensor of the file
    assert parity["weights"] - 1 <= parity["weights_identical"] > 20
    assert manifest.parameters == sum(p.numel() for p in load_encoder(folders[0]).parameters())


def test_rows_are_the_encoders_features_of_the_named_images(
    folders: tuple[Path, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, artifact = folders
    words = ["--batch-size", "7", "--out", str(tmp_path / "out")]
    assert main(["predict", str(artifact), str(photos), *words]) == 0
    assert f"next: edgemim benchmark {artifact}" in capsys.readouterr().out.replace("\n", " ")
    features = np.load(tmp_path / "out" / "features.npy")
    with (tmp_path / "out" / "features.csv").open() as file:
        rows = list(csv.DictReader(file))
    encoder, preprocessing = load_encoder(run), Artifact.open(artifact).manifest.preprocessing
    assert features.shape == (120, encoder.config.width)
    assert features.dtype == np.float32
    assert [int(row["row"]) for row in rows] == list(range(120))
    for number in (0, 50, 119):
        image = torch.from_numpy(preprocessing(load_image(rows[number]["image"])))[None]
        with torch.no_grad():
            expected = encoder(image).pooled(encoder.config.depth)[0].numpy()
        assert features[number] == pytest.approx(expected, abs=1e-4)
    # and they tell photos apart: an odd row's neighbours among the even ones
    classes = sorted({Path(row["image"]).parent.name for row in rows})
    labels = torch.tensor([classes.index(Path(row["image"]).parent.name) for row in rows])
    found = torch.from_numpy(features)
    assert knn_accuracy(found[::2], labels[::2], found[1::2], labels[1::2], k=5) > 50  # chance is 25


def test_the_run_itself_gives_the_same(folders: tuple[Path, Path], photos: Path, tmp_path: Path) -> None:
    run, artifact = folders
    images = (photos / "coffee",)
    by_run, by_file = (
        predict(PredictConfig(artifact=folder, images=images, out=tmp_path / folder.name))  # pyright: ignore
        for folder in (run, artifact)
    )
    assert [entry["image"] for entry in by_run] == [entry["image"] for entry in by_file]
    for one, other in zip(by_run, by_file, strict=True):
        assert one["features"] == pytest.approx(other["features"], abs=1e-4)


def test_int8_tensorrt_and_masks_are_refused(folders: tuple[Path, Path], photos: Path, tmp_path: Path, capsys) -> None:
    run, artifact = folders
    for flag in ("--int8", "--tensorrt"):
        assert main(["export", str(run), flag, "--out", str(tmp_path / "x")]) == 2
        text = capsys.readouterr().err
        assert f"{flag}: INT8 of features has no gate yet; run `edgemim finetune --init {run}`" in text
    assert not (tmp_path / "x").exists()
    assert main(["quantize", str(artifact)]) == 2
    assert "edgemim finetune" in capsys.readouterr().err
    assert main(["predict", str(artifact), str(photos), "--mode", "slide"]) == 2
    assert f"{artifact} is for features" in capsys.readouterr().err
    assert set(json.loads((artifact / "manifest.json").read_text())["files"]) == {"onnx-fp32", "onnx-fp16"}


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file, *_, **__) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict_features.np, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*features.npy: No space left on device"):
        write_features(tmp_path, [{"image": "a.png", "features": np.zeros(3, np.float32)}])
    assert not list(tmp_path.iterdir())
