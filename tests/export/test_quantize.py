"""The INT8 gate: what is good and fast joins the artifact; what is worse or slower leaves no trace."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hard_to_quantise import inject_outliers, ruin_projection
from small_run import stopwatch, timings

import edgemim
from edgemim.edge.artifact import Artifact, describe_file, sha256_of
from edgemim.edge.runtime import open_session
from edgemim.errors import ModelRefused, UserError
from edgemim.export import fidelity, int8_files
from edgemim.export.quantize import (
    Int8Config,
    calibration_images,
    quantize_artifact,
)

ONNX = {"targets": ("onnx-int8",), "images": 100, "seconds": 0.05}


def test_calibration_images_are_the_runs_training_images_and_hashed(task) -> None:
    images, digest = calibration_images(task, 50)
    assert images.shape == (50, 3, 64, 64)
    again, same = calibration_images(task, 50)
    np.testing.assert_array_equal(images, again)
    assert digest == same
    assert calibration_images(task, 49)[1] != digest
    assert len(calibration_images(task, 10_000)[0]) == len(task.data.train)


def test_a_good_and_fast_int8_joins(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    before = sha256_of(artifact.file())
    [verdict] = quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))
    assert (verdict.outcome, verdict.reasons) == ("kept", ())
    opened = Artifact.open(artifact.folder)
    report = opened.manifest.quantization["onnx-int8"]
    assert report == verdict.report
    assert report["images"] == 100
    assert report["agreement"] >= 99
    assert report["cosine"] >= 0.999
    assert report["speed_ratio"] == 0.5
    assert report["thresholds"] == {
        "max_drop": 1.0,
        "min_agreement": 99.0,
        "min_cosine": 0.999,
        "speed_ratio_below": 1.0,
    }
    assert opened.manifest.files["onnx-int8"].isa in ("vnni", "portable")
    assert sha256_of(opened.file()) == before
    images = next(iter(task.evaluation_batches(8)))[0]
    fp32, int8 = (open_session(opened, key).run({"images": images})["logits"] for key in ("onnx-fp32", "onnx-int8"))
    assert 0 < np.abs(fp32 - int8).max() < 0.1 * np.abs(fp32).max()
    with pytest.raises(UserError, match="has onnx-int8 already; --overwrite"):
        quantize_artifact(opened, task, Int8Config.model_validate(ONNX))


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_a_slower_int8_leaves_no_trace(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3)))
    before = tree(artifact.folder)
    [verdict] = quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))
    assert verdict.outcome == "refused"
    assert len(verdict.reasons) in (1, 2)  # one for each thread count of this machine
    assert all("slower: 1.50 of FP32's time" in reason for reason in verdict.reasons)
    assert tree(artifact.folder) == before
    assert "onnx-int8" not in artifact.manifest.files


def test_force_keeps_it_and_says_so(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3)))
    [verdict] = quantize_artifact(artifact, task, Int8Config.model_validate({**ONNX, "force": True}))
    assert verdict.outcome == "forced"
    report = Artifact.open(artifact.folder).manifest.quantization["onnx-int8"]
    assert report["forced"] is True
    assert "slower" in report["reasons"][0]


def test_a_disturbed_timing_is_no_refusal(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3, foreign=0.5)))
    [verdict] = quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))
    assert verdict.outcome == "kept"
    assert verdict.report["speed_verdict"] == "undecided"


def test_a_ruined_int8_is_refused_and_the_older_one_stays(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that went wrong in quantisation are caught by what they answer."""
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))
    before = tree(artifact.folder)
    honest = int8_files.quantize_dynamic_onnx

    def ruin(source: Path, target: Path, *, full_range: bool, floats: list[str]) -> None:
        import onnx
        from onnx import TensorProto, numpy_helper

        honest(source, target, full_range=full_range, floats=floats)
        model = onnx.load(target)
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2:
                coarse = numpy_helper.to_array(tensor) // 48 * 48
                tensor.CopyFrom(numpy_helper.from_array(coarse.astype(np.int8), tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(int8_files, "quantize_dynamic_onnx", ruin)
    [verdict] = quantize_artifact(artifact, task, Int8Config.model_validate(ONNX), overwrite=True)
    assert verdict.outcome == "refused"
    assert any("cosine" in reason for reason in verdict.reasons)
    assert tree(artifact.folder) == before


def test_a_failing_quantiser_leaves_no_trace(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(artifact.folder)

    def fail(source: Path, target: Path, *, full_range: bool, floats: list[str]) -> None:
        target.write_bytes(b"half")
        raise ModelRefused("cannot")

    monkeypatch.setattr(int8_files, "quantize_dynamic_onnx", fail)
    with pytest.raises(ModelRefused):
        quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))

    def full(source: Path, target: Path, *, full_range: bool, floats: list[str]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(int8_files, "quantize_dynamic_onnx", full)
    with pytest.raises(UserError, match="No space left on device"):
        quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))
    assert tree(artifact.folder) == before


def test_a_block_that_collapses_stays_in_float_and_no_more(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    [projection] = ruin_projection(artifact.file(), artifact.file(), "blocks.1")
    entry = describe_file(artifact.folder, "model.onnx", format="onnx", precision="fp32")
    artifact.manifest = artifact.manifest.model_copy(update={"files": {"onnx-fp32": entry}})
    [plain] = quantize_artifact(artifact, task, Int8Config.model_validate({**ONNX, "search": False}))
    assert plain.outcome == "refused" and plain.report["float_layers"] == []
    assert any("agreement" in reason for reason in plain.reasons)
    [found] = quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))
    assert (found.outcome, found.reasons) == ("kept", ())
    assert found.report["float_layers"] == [projection]
    assert found.report["search"]["found"] and found.report["search"]["forms_tried"] > 2
    assert found.report["search"]["all_int8"]["agreement"] == plain.report["agreement"] < 99
    assert Artifact.open(artifact.folder).manifest.quantization["onnx-int8"]["float_layers"] == [projection]
    assert plain.report["block_cosine"]["blocks.1"] < 0.99 < found.report["block_cosine"]["blocks.1"]


@pytest.mark.parametrize("smooth", [True, False])
def test_outliers_ruin_int8_unless_smoothed(artifact, task, smooth: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    inject_outliers(artifact.file(), artifact.file(), 200.0)
    entry = describe_file(artifact.folder, "model.onnx", format="onnx", precision="fp32")
    artifact.manifest = artifact.manifest.model_copy(update={"files": {"onnx-fp32": entry}})
    before = sha256_of(artifact.file())
    config = Int8Config.model_validate({**ONNX, "smooth": smooth, "search": False})
    [verdict] = quantize_artifact(artifact, task, config)
    assert sha256_of(artifact.file()) == before
    if smooth:
        assert verdict.outcome == "kept" and verdict.report["agreement"] >= 99
        assert verdict.report["smoothed"] == {"alpha": 0.5, "norms": 5, "norms_left": 0}
    else:
        assert verdict.outcome == "refused" and verdict.report["agreement"] < 90
        assert "smoothed" not in verdict.report


def test_another_runs_classes_are_refused(artifact, task) -> None:
    artifact.manifest = artifact.manifest.model_copy(update={"labels": ("a", "b", "c", "d")})
    with pytest.raises(UserError, match="classes of the run are not those"):
        quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))


SEGMENTS = Int8Config(targets=("onnx-int8",), threads=(1,), seconds=0.05)


def test_pixels_are_judged_by_miou(segmenter, segmentation_task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    [verdict] = quantize_artifact(segmenter, segmentation_task, SEGMENTS)
    assert (verdict.outcome, verdict.reasons) == ("kept", ())
    report = Artifact.open(segmenter.folder).manifest.quantization["onnx-int8"]
    assert report == verdict.report
    assert (report["metric"], report["answers"], report["images"], report["labelled"]) == ("mIoU", "pixels", 6, 6)
    trained = json.loads((Path(segmenter.manifest.source["run"]) / "run.json").read_text())["results"]
    assert report["score_fp32"] == pytest.approx(trained["miou"], abs=0.05)  # by the other wing, in the same windows
    assert 0 < abs(report["drop_points"]) <= 0.5 and 99 <= report["agreement"] < 100 and 0.999 <= report["cosine"] < 1
    assert report["thresholds"]["max_drop"] == 0.5
    assert (report["calibration_images"], len(report["calibration_sha256"])) == (24, 64)


def test_pixels_at_another_size_than_that_of_training(
    fp32_segmenters: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb turns the run's model to the artifact's size, so that both are labelled in the same windows."""
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    folder = shutil.copytree(fp32_segmenters[48], tmp_path / "large")
    edgemim.quantize(edgemim.QuantizeConfig(artifact=folder, **SEGMENTS.model_dump()))
    manifest = Artifact.open(folder).manifest
    assert manifest.source["positions"] == "interpolated from 32 to 48 pixels"
    assert manifest.quantization["onnx-int8"]["outcome"] == "kept"
    images = np.random.default_rng(0).normal(size=(1, 3, 48, 48)).astype(np.float32)
    assert open_session(Artifact.open(folder), "onnx-int8").run({"images": images})["logits"].shape == (1, 3, 48, 48)


def test_pixels_after_a_bad_calibration_are_refused(
    segmenter, segmentation_task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges taken from noise a thousand times stronger than an image are far too coarse: the gate sees it, nothing stays."""
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    noise = 1000 * np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    monkeypatch.setattr(segmentation_task, "calibration_batches", lambda count: iter([noise]))
    before = tree(segmenter.folder)
    [verdict] = quantize_artifact(segmenter, segmentation_task, SEGMENTS)
    assert verdict.outcome == "refused"
    assert re.match(r"calibration images with \d{3,4} times the contrast of held-out ones", verdict.reasons[0])
    assert re.search(r"mIoU drop of .* points \(at most 0.5\)", verdict.reasons[1])
    assert any("of the pixels (at least 99 %)" in reason for reason in verdict.reasons)
    assert verdict.report["calibration_images"] == 8
    assert tree(segmenter.folder) == before


def test_pixels_labelled_slower_are_refused(segmenter, segmentation_task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3)))
    before = tree(segmenter.folder)
    [verdict] = quantize_artifact(segmenter, segmentation_task, SEGMENTS)
    assert (verdict.outcome, verdict.reasons) == ("refused", ("slower: 1.50 of FP32's time with 1 threads (below 1)",))
    assert tree(segmenter.folder) == before
