"""Features of pre-trained encoders: timm's own tokens, pooled; the same from a file; images without labels do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import NANO, nano_encoder

from edgemim.edge.images import load_image
from edgemim.errors import UserError
from edgemim.export.onnx import export_onnx
from edgemim.export.parity import measure_parity
from edgemim.models.build import build_encoder
from edgemim.models.sizes import EncoderSize, HieraConfig, RelativeVitConfig
from edgemim.models.weights import save_model, to_timm
from edgemim.tasks import FeaturesTask, open_task
from edgemim.tasks.features import open_features

ort = pytest.importorskip("onnxruntime")
OWN = {"image_size": 32, "crop_pct": 1.0, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
SIZES = {
    "plain": NANO,
    "relative": RelativeVitConfig(width=24, depth=3, heads=3, patch_size=8, image_size=32),
    "hierarchical": HieraConfig(embed_dim=4, stages=(1, 1, 3, 2), patch_stride=2, patch_kernel=3, image_size=32),
}


def encoder_run(folder: Path, size: EncoderSize = NANO, data: Path | None = None) -> Path:
    """A pre-training run with random weights."""
    torch.manual_seed(0)
    encoder = nano_encoder() if size is NANO else build_encoder(size)
    facts = {"kind": "encoder", "encoder": size.model_dump(mode="json"), "preprocessing": OWN}
    save_model(folder / "model", encoder.vit.state_dict(), facts)
    (folder / "run.json").write_text(json.dumps({"verb": "pretrain", "config": {"data": data and str(data)}}))
    return folder


class OnnxSession:
    """A file in ONNX Runtime, opened without this package."""

    def __init__(self, path: Path) -> None:
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(["features"], self.session.run(["features"], inputs), strict=True))


def test_features_are_the_mean_of_timms_normed_patch_tokens(photos: Path, tmp_path: Path) -> None:
    task = open_task(encoder_run(tmp_path, data=photos))
    assert isinstance(task, FeaturesTask)
    network = to_timm(task.model.encoder).eval()  # pyright: ignore
    images, _ = next(task.evaluation_batches(5))
    with torch.no_grad():
        tokens = network.forward_features(torch.from_numpy(images))
        found = task.export_module()(torch.from_numpy(images))
    assert found.shape == (5, 24)
    assert torch.allclose(found, tokens[:, 1:].mean(1), atol=1e-6)
    assert not torch.allclose(found, tokens.mean(1), atol=1e-3)  # the class token is no patch


@pytest.mark.parametrize("kind", SIZES)
def test_every_encoder_is_the_same_in_a_file(kind: str, photos: Path, tmp_path: Path) -> None:
    task = open_features(encoder_run(tmp_path, SIZES[kind], photos))
    export_onnx(task.export_module(), task.example_input(), tmp_path / "m.onnx", output_names=task.output_names)
    batches = (images for images, _ in task.evaluation_batches(12))
    session = OnnxSession(tmp_path / "m.onnx")
    parity = measure_parity(task.export_module(), {"ort": session}, batches, output_name="features")["ort"]  # pyright: ignore
    assert parity.images == 12
    assert parity.max_abs_error < 1e-5


def test_images_need_no_labels_and_come_evenly_from_the_set(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(10):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(flat / f"{number}.png")
    task = open_features(encoder_run(tmp_path / "run"), data=flat)
    images = np.concatenate([batch for batch, _ in task.evaluation_batches(5, batch_size=2)])
    expected = np.stack([task.preprocessing(load_image(flat / f"{number}.png")) for number in (0, 2, 4, 6, 8)])
    assert np.allclose(images, expected, atol=1e-6)
    assert sum(len(batch) for batch, _ in task.evaluation_batches(None)) == 10


def test_without_its_images_a_run_still_opens(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    run = encoder_run(tmp_path / "run", data=data)
    assert len(open_features(run).held_out()) == 120
    shutil.rmtree(data)
    with pytest.raises(UserError, match="--data DIR"):
        next(open_features(run).evaluation_batches(4))
    with pytest.raises(UserError, match="no folder at"):
        open_features(run, data=data)


def test_int8_is_refused_until_there_is_a_gate(photos: Path, tmp_path: Path) -> None:
    task = open_features(encoder_run(tmp_path, data=photos))
    with pytest.raises(UserError, match="no gate yet; run `edgemim finetune --init"):
        task.calibration_batches(4)
    with pytest.raises(UserError, match="no gate yet"):
        task.compare(None, None, 4)  # pyright: ignore


def test_a_damaged_description_is_one_sentence(tmp_path: Path) -> None:
    run = encoder_run(tmp_path)
    path = run / "model" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "preprocessing": {"image_size": -3}}))
    with pytest.raises(UserError, match="does not describe a model"):
        open_features(run)
