"""OpenVINO's files: FP32 as exact as ONNX, INT8 by NNCF as good as the gate asks, a bad calibration refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from small_run import stopwatch, timings

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime import open_session
from edgemim.errors import MissingLibrary, ModelRefused
from edgemim.export import fidelity, openvino
from edgemim.export.openvino import convert, input_convolutions, require_packages
from edgemim.export.quantize import Int8Config, quantize_artifact

CONFIG = Int8Config(targets=("openvino-int8",), images=240, threads=(1,), calibration=80)


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("openvino", reason="pip install 'edgemim[openvino]'")


def test_own_format_gives_the_same_answers(artifact, held_out_images: np.ndarray) -> None:
    own = open_session(artifact, "openvino-fp32").run({"images": held_out_images})["logits"]
    onnx = open_session(artifact).run({"images": held_out_images})["logits"]
    np.testing.assert_allclose(own, onnx, atol=1e-5)


def test_int8_joins_and_the_patch_embedding_is_float(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf", reason="pip install 'edgemim[openvino]'")
    import openvino as runtime

    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    [verdict] = quantize_artifact(artifact, task, CONFIG)
    assert verdict.outcome == "kept", verdict.reasons
    assert os.environ["NNCF_CI"]  # NNCF reports to nobody
    opened = Artifact.open(artifact.folder)
    assert opened.manifest.files["openvino-int8"].companions.keys() == {"openvino-int8.bin"}
    report = opened.manifest.quantization["openvino-int8"]
    assert (report["images"], report["calibration_images"]) == (240, 80)
    assert report["calibration_sha256"]
    model = runtime.Core().read_model(opened.file("openvino-int8"))
    assert len(input_convolutions(model)) == 1  # nothing stands between the images and the patch embedding
    assert "FakeQuantize" in {node.get_type_name() for node in model.get_ops()}
    assert model.get_rt_info(["framework", "edgemim.image_size"]).astype(str) == "64"
    assert opened.size_bytes("openvino-int8") < opened.size_bytes("openvino-fp32")


def test_a_bad_calibration_set_is_refused(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges taken from black images clip what real ones need: the gate sees it and nothing stays."""
    pytest.importorskip("nncf", reason="pip install 'edgemim[openvino]'")
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    black = np.full((8, 3, 64, 64), -1.6, np.float32)
    monkeypatch.setattr(task, "calibration_batches", lambda count: iter([black]))
    before = sorted(path.name for path in artifact.folder.iterdir())
    [verdict] = quantize_artifact(artifact, task, CONFIG)
    assert verdict.outcome == "refused"
    assert any("agreement" in reason for reason in verdict.reasons)
    assert verdict.report["calibration_images"] == 8
    assert sorted(path.name for path in artifact.folder.iterdir()) == before


def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelRefused, match="OpenVINO"):
        convert(tmp_path / "broken.onnx", tmp_path / "out.xml")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages(quantize=False)
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match=r"needs openvino and nncf: pip install 'edgemim\[openvino\]'"):
        require_packages(quantize=True)
