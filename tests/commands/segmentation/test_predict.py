"""`edgemim predict` for pixels: an artifact without torch, a run with it, the same masks from both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import stopwatch, timings
from small_segmentation import HEIGHT, LABELS, WIDTH, small_segmentation_run

torch = pytest.importorskip("torch")

import edgemim  # noqa: E402
from edgemim.cli import main  # noqa: E402
from edgemim.edge.artifact import Artifact  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.export import fidelity  # noqa: E402
from edgemim.export.torch_session import open_torch_session  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_segmentation_run(tmp_path_factory.getbasetemp() / "small_segmentation")


@pytest.fixture(scope="module")
def artifact(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported through the gate of parity."""
    out = tmp_path_factory.mktemp("artifact") / "artifact"
    edgemim.export_model(edgemim.ExportConfig(run=run, out=out, parity_images=6))
    return out


def images_of(run: Path) -> Path:
    return run.parent / "data" / "val" / "images"


def test_export_passes_its_gate_and_says_how_images_are_labelled(artifact: Path) -> None:
    manifest = Artifact.open(artifact).manifest
    assert (manifest.task, manifest.labels, manifest.input_shape) == ("segmentation", LABELS, (None, 3, 32, 32))
    assert manifest.inference is not None and manifest.inference.short_side == 48
    assert manifest.parity["images"] == 6 and manifest.parity["relative_error"] < 1e-4
    session = edgemim.open_session(Artifact.open(artifact))
    for batch in (1, 3):
        assert session.run({"images": np.zeros((batch, 3, 32, 32), np.float32)})["logits"].shape == (batch, 3, 32, 32)


def test_masks_of_artifact_and_run_are_those_of_training(artifact: Path, run: Path, tmp_path: Path) -> None:
    found = edgemim.predict(edgemim.PredictConfig(artifact=artifact, images=(images_of(run),), out=tmp_path / "a"))
    edgemim.predict(edgemim.PredictConfig(artifact=run, images=(images_of(run),), out=tmp_path / "r", threads=1))
    from edgemim.tasks import SegmentationTask, load_task

    task = load_task(run)
    assert isinstance(task, SegmentationTask)
    assert len(found) == 6
    for number, entry in enumerate(found):
        with Image.open(entry["mask"]) as first, Image.open(tmp_path / "r" / "masks" / f"{number:03d}.png") as second:
            ours, theirs = np.asarray(first), np.asarray(second)
        assert ours.shape == (HEIGHT, WIDTH)
        assert (ours == theirs).mean() > 0.999
        expected = task.predict(task.held_out_pairs().read(number)[0])
        assert (ours == expected).mean() > 0.999
        shares = {label: 100 * float((ours == i).mean()) for i, label in enumerate(LABELS)}
        assert entry["shares"] == pytest.approx({k: v for k, v in shares.items() if v}, abs=0.01)
        with Image.open(entry["overlay"]) as picture:
            assert picture.size == (WIDTH, HEIGHT)
    assert (tmp_path / "a" / "legend.png").is_file()
    assert json.loads((tmp_path / "a" / "predictions.json").read_text()) == found


def test_an_int8_file_labels_as_fp32_does(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain by the command line: export, INT8, its gate by mIoU, then masks from the INT8 file."""
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    folder, words = str(tmp_path / "artifact"), ("--targets", "onnx-int8", "--threads", "1", "--parity-images", "4")
    assert main(["export", str(run), "--onnx", "--int8", "--out", folder, *words]) == 0
    masks = []
    for key in ("onnx-fp32", "onnx-int8"):
        out = tmp_path / key
        assert main(["predict", folder, str(images_of(run)), "--file", key, "--out", str(out)]) == 0
        masks.append([np.asarray(Image.open(path)) for path in sorted((out / "masks").iterdir())])
    same = np.mean([(first == second).mean() for first, second in zip(*masks, strict=True)])
    assert 0.99 < same < 1
    report = Artifact.open(folder).manifest.quantization["onnx-int8"]
    assert same == pytest.approx(report["agreement"] / 100)  # what the gate saw is what a user gets
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3)))
    assert main(["quantize", folder, "--targets", "onnx-int8", "--threads", "1", "--overwrite"]) == 3
    assert Artifact.open(folder).manifest.quantization["onnx-int8"] == report


def test_an_artifact_needs_no_torch(artifact: Path, run: Path, tmp_path: Path) -> None:
    words = ["predict", str(artifact), str(images_of(run) / "000.jpg"), "--out", str(tmp_path / "p"), "--threads", "1"]
    program = (
        "import sys\nclass Refuse:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'timm', 'safetensors', 'torchmetrics'):\n"
        "            raise ModuleNotFoundError(name)\nsys.meta_path.insert(0, Refuse())\n"
        f"from edgemim.cli import main\nsys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p" / "masks" / "000.png").is_file()


def test_both_modes_and_a_fixed_batch(run: Path, artifact: Path, tmp_path: Path) -> None:
    edgemim.export_model(edgemim.ExportConfig(run=run, out=tmp_path / "fixed", parity_images=4, fixed_batch=2))
    image = images_of(run) / "001.jpg"
    masks = []
    for number, (folder, mode) in enumerate(((artifact, None), (tmp_path / "fixed", "slide"), (artifact, "whole"))):
        config = edgemim.PredictConfig(artifact=folder, images=(image,), mode=mode, out=tmp_path / str(number))
        with Image.open(edgemim.predict(config)[0]["mask"]) as picture:
            masks.append(np.asarray(picture))
    assert (masks[0] == masks[1]).mean() > 0.999
    assert 0.6 < (masks[0] == masks[2]).mean() < 1


def test_another_size_than_that_of_training(run: Path, artifact: Path, tmp_path: Path) -> None:
    """Positions are interpolated, the manifest says so, and the larger squares show what the small ones did."""
    edgemim.export_model(edgemim.ExportConfig(run=run, out=tmp_path / "large", parity_images=4, image_size=48))
    manifest = Artifact.open(tmp_path / "large").manifest
    assert manifest.input_shape == (None, 3, 48, 48)
    assert (manifest.source["trained_image_size"], manifest.preprocessing.image_size) == (32, 48)
    assert manifest.source["positions"] == "interpolated from 32 to 48 pixels"
    assert "positions" not in Artifact.open(artifact).manifest.source
    assert manifest.inference is not None and (manifest.inference.short_side, manifest.inference.stride) == (48, 36)
    right = []
    for folder in (artifact, tmp_path / "large"):
        config = edgemim.PredictConfig(artifact=folder, images=(images_of(run),), out=tmp_path / f"{folder.name}-masks")
        shares = []
        for entry in edgemim.predict(config):
            truth_file = run.parent / "data" / "val" / "masks" / Path(entry["mask"]).name
            with Image.open(entry["mask"]) as found, Image.open(truth_file) as truth:
                ours, mask = np.asarray(found), np.asarray(truth)
            shares.append((ours == mask)[mask != 255].mean())
        right.append(float(np.mean(shares)))
    assert right[1] > right[0] - 0.1
    # PyTorch's row of a benchmark is the same network.
    images = np.random.default_rng(0).normal(size=(2, 3, 48, 48)).astype(np.float32)
    expected = edgemim.open_session(Artifact.open(tmp_path / "large")).run({"images": images})["logits"]
    found = open_torch_session(run, threads=1, image_size=48).run({"images": images})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(UserError, match=r"cannot take squares of 36 pixels: .* not a multiple of patch_size 8"):
        edgemim.export_model(edgemim.ExportConfig(run=run, out=tmp_path / "odd", image_size=36))
    assert not (tmp_path / "odd").exists()


def test_names_that_clash_and_images_at_fault(run: Path, artifact: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes((images_of(run) / "000.jpg").read_bytes())
    (tmp_path / "one" / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((1, 30000, 3), np.uint8)).resize((60000, 1)).save(tmp_path / "two" / "long.png")
    inputs = (tmp_path / "one", tmp_path / "two")
    found = edgemim.predict(edgemim.PredictConfig(artifact=artifact, images=inputs, out=tmp_path / "p"))
    assert [Path(entry["mask"]).name for entry in found] == ["a.png", "a~2.png"]
    skipped = json.loads((tmp_path / "p" / "run.json").read_text())["results"]["skipped"]
    assert [Path(path).name for path, _ in skipped] == ["broken.png", "long.png"]
    with pytest.raises(UserError, match=r"none of the 1 images could be read; the first: .*broken\.png"):
        edgemim.predict(
            edgemim.PredictConfig(artifact=artifact, images=(tmp_path / "one" / "broken.png",), out=tmp_path / "q")
        )


def test_what_does_not_apply_is_refused(run: Path, artifact: Path, tmp_path: Path) -> None:
    image = images_of(run) / "000.jpg"
    with pytest.raises(UserError, match="--file and --runtime are for artifacts"):
        edgemim.predict(edgemim.PredictConfig(artifact=run, images=(image,), runtime="openvino"))
    opened = Artifact.open(artifact)
    opened.manifest = opened.manifest.model_copy(update={"inference": None})
    shutil.copytree(artifact, tmp_path / "bare")
    Artifact(tmp_path / "bare", opened.manifest).save_manifest()
    with pytest.raises(UserError, match="does not say how images are labelled; export it again"):
        edgemim.predict(edgemim.PredictConfig(artifact=tmp_path / "bare", images=(image,)))
