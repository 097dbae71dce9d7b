"""INT8 trackers: every graph quantised, boxes compared with FP32's, the gate's verdict recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
from small_tracker import small_tracker  # noqa: E402

from edgemim.commands.export import ExportConfig, export_model  # noqa: E402
from edgemim.edge.artifact import Artifact  # noqa: E402
from edgemim.edge.tracking.tracker import Tracker  # noqa: E402
from edgemim.export.openvino import missing_packages  # noqa: E402
from edgemim.export.quantize import Int8Config, Target, quantize_artifact  # noqa: E402
from edgemim.export.tracking_int8 import TRACKER_MAKER  # noqa: E402
from edgemim.tasks import load_task  # noqa: E402

torch.set_num_threads(1)

QUICK = {"calibration": 4, "images": 4, "seconds": 0.01, "threads": (1,)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = small_tracker(tmp_path_factory.mktemp("cached"), "cached")
    export_model(ExportConfig(run=run, out=run.parent / "artifact", parity_images=2))
    return run


@pytest.mark.parametrize("key", ["onnx-int8", "openvino-int8"])
def test_both_graphs_are_quantised_and_run(run: Path, key: Target) -> None:
    if key == "openvino-int8" and missing_packages(quantize=True):
        pytest.skip("openvino and nncf are not installed")
    artifact = Artifact.open(run.parent / "artifact")
    config = Int8Config(targets=(key,), force=True, **QUICK)  # pyright: ignore[reportArgumentType]
    [verdict] = quantize_artifact(artifact, load_task(run), config, overwrite=True, maker=TRACKER_MAKER)
    assert verdict.outcome in ("kept", "forced")
    report = Artifact.open(artifact.folder).manifest.quantization[key]
    assert report["metric"] == "mean IoU" and report["answers"] == "boxes" and report["images"] == 4
    assert 0 <= report["score_int8"] <= 100 and report["cosine"] > 0.9
    assert report["calibration_images"] == 4 and report["size_bytes"] < report["size_bytes_fp32"] * 1.2
    assert {key, f"{key}-template"} <= set(artifact.manifest.files)
    if key == "onnx-int8":
        for name in (key, f"{key}-template"):
            kinds = {node.op_type for node in onnx.load(artifact.file(name)).graph.node}
            assert "MatMulInteger" in kinds or "DynamicQuantizeMatMul" in kinds
    Tracker.open(artifact, key).warm_up()


def test_a_worse_tracker_is_refused_and_nothing_stays(run: Path) -> None:
    artifact = Artifact.open(run.parent / "artifact")
    before = set(artifact.manifest.files)
    config = Int8Config(targets=("onnx-int8",), min_cosine=1.0, **QUICK)  # pyright: ignore[reportArgumentType]
    [verdict] = quantize_artifact(artifact, load_task(run), config, overwrite=True, maker=TRACKER_MAKER)
    assert verdict.outcome == "refused" and any("cosine" in reason for reason in verdict.reasons)
    assert set(Artifact.open(artifact.folder).manifest.files) == before
