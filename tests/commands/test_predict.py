import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_artifact import tiny_artifact
from tiny_tracker import tiny_tracker

from edgemim.cli import main
from edgemim.commands.predict import PredictConfig, find_images, predict
from edgemim.edge.artifact import Artifact
from edgemim.edge.images import load_image
from edgemim.edge.runtime import open_session
from edgemim.errors import UserError


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "artifact", int8=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images, two of them below a sub-folder, and two files that are none."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(7):
        pixels = generator.integers(0, 255, (20 + index, 30, 3), np.uint8)
        Image.fromarray(pixels).save((root / "deep" if index > 4 else root) / f"{index}.png")
    (root / "notes.txt").write_text("no image")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    return root


def expected(artifact: Artifact, path: str, key: str = "onnx-fp32") -> np.ndarray:
    batch = artifact.manifest.preprocessing(load_image(path))[None]
    return open_session(artifact, key).run({"images": batch})["logits"][0]


# A dynamically quantised model takes one range for a whole batch: only one image at once gives comparable figures.
@pytest.mark.parametrize(
    ("key", "batch_size"), [("onnx-fp32", 1), ("onnx-fp32", 3), ("onnx-fp32", 40), ("onnx-int8", 1)]
)
def test_classes_are_those_of_the_session(artifact: Artifact, folder: Path, batch_size: int, key: str) -> None:
    found = predict(PredictConfig(artifact=artifact.folder, images=(folder,), batch_size=batch_size, file=key, top=4))
    assert [Path(entry["image"]).stem for entry in found] == [str(index) for index in range(7)]
    for entry in found:
        logits = expected(artifact, entry["image"], key)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        ranked = entry["predictions"]
        assert [one["index"] for one in ranked] == list(np.argsort(-logits))
        assert [one["label"] for one in ranked] == [artifact.manifest.labels[i] for i in np.argsort(-logits)]
        assert [one["logit"] for one in ranked] == pytest.approx(np.sort(logits)[::-1], abs=1e-4)
        assert [one["probability"] for one in ranked] == pytest.approx(np.sort(probabilities)[::-1], abs=1e-4)


def test_bad_images_are_reported_and_left_out(artifact: Artifact, folder: Path, capsys) -> None:
    found = predict(PredictConfig(artifact=artifact.folder, images=(folder, folder / "missing.png")))
    assert len(found) == 7
    record = json.loads((artifact.folder / "predict" / "run.json").read_text())
    skipped = {Path(name).name: reason for name, reason in record["results"]["skipped"]}
    assert set(skipped) == {"broken.jpg", "missing.png"}
    assert skipped["missing.png"] == "does not exist"
    assert (record["status"], record["results"]["images"]) == ("done", 7)
    assert "broken.jpg" in capsys.readouterr().err


def test_json_and_csv_say_the_same(artifact: Artifact, folder: Path, tmp_path: Path) -> None:
    found = predict(PredictConfig(artifact=artifact.folder, images=(folder,), top=2, out=tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == found
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "label_1", "probability_1", "label_2", "probability_2"]
    for row, entry in zip(rows, found, strict=True):
        assert row["image"] == entry["image"]
        assert row["label_2"] == entry["predictions"][1]["label"]
        assert float(row["probability_1"]) == pytest.approx(entry["predictions"][0]["probability"], abs=1e-6)


def test_a_fixed_batch_is_filled_up(tmp_path: Path, folder: Path) -> None:
    fixed = tiny_artifact(tmp_path / "fixed", batch=4)
    free = tiny_artifact(tmp_path / "free")
    answers = [
        [entry["predictions"][0]["logit"] for entry in predict(PredictConfig(artifact=one.folder, images=(folder,)))]
        for one in (fixed, free)
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-4)


def test_nothing_readable_is_an_error(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(UserError, match=r"none of the 1 images could be read; the first: image .*a\.png"):
        predict(PredictConfig(artifact=artifact.folder, images=(tmp_path / "a.png",)))


def test_too_large_images_are_left_out(artifact: Artifact, folder: Path) -> None:
    found = predict(PredictConfig(artifact=artifact.folder, images=(folder,), max_pixels=23 * 30))
    assert [Path(entry["image"]).stem for entry in found] == ["0", "1", "2", "3"]


def test_what_counts_as_an_image(folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in find_images([folder])] == [
        *(f"{i}.png" for i in range(5)),
        "broken.jpg",
        "5.png",
        "6.png",
    ]
    assert find_images([folder / "notes.txt"]) == [folder / "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image"):
        find_images([tmp_path / "empty"])
    with pytest.raises(UserError, match="no images given"):
        find_images([])


def test_labels_that_do_not_fit_the_model(tmp_path: Path, folder: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    artifact.manifest = artifact.manifest.model_copy(update={"labels": ("only", "two")})
    artifact.save_manifest()
    with pytest.raises(UserError, match="2 labels, the model 4 outputs"):
        predict(PredictConfig(artifact=artifact.folder, images=(folder,)))


def test_another_task_is_refused(folder: Path, tmp_path: Path) -> None:
    tracker = tiny_tracker(tmp_path / "tracker").folder
    with pytest.raises(UserError, match=r"is for tracking.*edgemim track"):
        predict(PredictConfig(artifact=tracker, images=(folder,)))


def test_the_mode_of_segmentation_is_refused(artifact: Artifact, folder: Path) -> None:
    with pytest.raises(UserError, match="--mode is for segmentation"):
        predict(PredictConfig(artifact=artifact.folder, images=(folder,), mode="whole"))


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path: Path, folder: Path, capsys) -> None:
    labels = ("\x1b[31mred", "[bold]b[/bold]", "c", "d")
    found = predict(PredictConfig(artifact=tiny_artifact(tmp_path / "a", labels=labels).folder, images=(folder,)))
    assert any(one["label"] == labels[0] for one in found[0]["predictions"])
    output = capsys.readouterr().out
    assert "\x1b[31m" not in output
    assert "[bold]b" in output.replace("\n", "").replace("│", "").replace(" ", "")


def test_command_line(artifact: Artifact, folder: Path, capsys) -> None:
    assert main(["predict", str(artifact.folder), str(folder / "0.png"), str(folder / "1.png"), "--top", "1"]) == 0
    assert "next: edgemim benchmark" in capsys.readouterr().out
    assert len(json.loads((artifact.folder / "predict" / "predictions.json").read_text())) == 2
    assert main(["predict", str(artifact.folder), str(folder / "0.png"), "--file", "onnx-int7"]) == 2
    assert "did you mean 'onnx-int8'" in capsys.readouterr().err
    assert main(["predict", str(artifact.folder)]) == 2
    assert "no images given" in capsys.readouterr().err
