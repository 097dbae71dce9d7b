"""The INT8 gate: what is good and fast joins the artifact; what is worse or slower leaves no trace."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_run import stopwatch, timings

import edgemim
from edgemim.edge.artifact import Artifact, sha256_of
from edgemim.edge.runtime import open_session
from edgemim.errors import MissingLibrary, ModelRefused, UserError
from edgemim.export import fidelity, quantize
from edgemim.export.fidelity import Speed
from edgemim.export.quantize import (
    Int8Config,
    calibration_images,
    limits_of,
    objections,
    pick_isa,
    pick_targets,
    quantize_artifact,
)
from edgemim.tasks.comparison import Comparison, Limits

ONNX = {"targets": ("onnx-int8",), "images": 100, "seconds": 0.05}


def good(**changes: float | None) -> Comparison:
    values = {"metric": "top-1", "images": 500, "labelled": 500, "score_fp32": 80.0, "score_int8": 79.0}
    more = {"answers": "images", "agreement": 99.0, "cosine": 0.999, "cosine_worst": 0.9}
    return Comparison(**{**values, **more, **changes})  # pyright: ignore[reportArgumentType]


def speed(ratio: float, undecided: bool = False) -> Speed:
    return Speed(1, ratio, undecided, 2.0, 2.0 * ratio, 0.0, 1)


@pytest.mark.parametrize(
    ("found", "ratio", "undecided", "words"),
    [
        (good(), 0.99, False, []),
        (good(score_int8=78.9), 0.5, False, ["top-1 drop of 1.10 points"]),
        (good(score_int8=81.0), 0.5, False, []),
        (good(score_int8=None, score_fp32=None, labelled=0), 0.5, False, []),
        (good(agreement=98.9), 0.5, False, ["agreement of 98.90 % of the images"]),
        (good(cosine=0.9989), 0.5, False, ["cosine of 0.99890"]),
        (good(cosine=float("nan")), 0.5, False, ["cosine of nan"]),
        (good(), 1.0, False, ["slower: 1.00"]),
        (good(), 1.5, True, []),
        (good(agreement=50, cosine=0.1, score_int8=10), 2.0, False, ["drop", "agreement", "cosine", "slower"]),
    ],
)
def test_objections(found: Comparison, ratio: float, undecided: bool, words: list[str]) -> None:
    reasons = list(objections(found, [speed(0.5), speed(ratio, undecided)], Limits(max_drop=1.0)))
    assert len(reasons) == len(words)
    for word, reason in zip(words, reasons, strict=True):
        assert word in reason


def test_limits_are_the_tasks_unless_asked(task) -> None:
    assert limits_of(task, Int8Config()) == Limits(max_drop=1.0, min_agreement=99.0, min_cosine=0.999)
    asked = Int8Config(max_drop=0.0, min_cosine=0.99)
    assert limits_of(task, asked) == Limits(max_drop=0.0, min_agreement=99.0, min_cosine=0.99)


def test_isa_follows_the_cpu_unless_asked() -> None:
    assert pick_isa("auto", ["avx2", "avx512_vnni"]) == "vnni"
    assert pick_isa("auto", ["avx2", "avx512f"]) == "portable"
    assert pick_isa("auto", ["asimddp"]) == "vnni"  # ARM's dot product sums in 32 bits too
    assert pick_isa("auto", []) == "portable"
    assert pick_isa("portable", ["avx512_vnni"]) == "portable"
    assert pick_isa("vnni", []) == "vnni"


def test_targets_follow_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "missing_packages", lambda quantize: [])
    assert pick_targets(()) == ("onnx-int8", "openvino-int8")
    monkeypatch.setattr(quantize, "missing_packages", lambda quantize: ["nncf"])
    assert pick_targets(()) == ("onnx-int8",)
    assert pick_targets(("onnx-int8", "onnx-int8")) == ("onnx-int8",)

    def absent(quantize: bool) -> None:
        raise MissingLibrary("pip install 'edgemim[openvino]'")

    monkeypatch.setattr(quantize, "require_packages", absent)
    with pytest.raises(MissingLibrary):
        pick_targets(("openvino-int8",))


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
    honest = quantize.quantize_dynamic_onnx

    def ruin(source: Path, target: Path, *, full_range: bool) -> None:
        import onnx
        from onnx import TensorProto, numpy_helper

        honest(source, target, full_range=full_range)
        model = onnx.load(target)
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2:
                coarse = numpy_helper.to_array(tensor) // 48 * 48
                tensor.CopyFrom(numpy_helper.from_array(coarse.astype(np.int8), tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(quantize, "quantize_dynamic_onnx", ruin)
    [verdict] = quantize_artifact(artifact, task, Int8Config.model_validate(ONNX), overwrite=True)
    assert verdict.outcome == "refused"
    assert any("cosine" in reason for reason in verdict.reasons)
    assert tree(artifact.folder) == before


def test_a_failing_quantiser_leaves_no_trace(artifact, task, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(artifact.folder)

    def fail(source: Path, target: Path, *, full_range: bool) -> None:
        target.write_bytes(b"half")
        raise ModelRefused("cannot")

    monkeypatch.setattr(quantize, "quantize_dynamic_onnx", fail)
    with pytest.raises(ModelRefused):
        quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))

    def full(source: Path, target: Path, *, full_range: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantize, "quantize_dynamic_onnx", full)
    with pytest.raises(UserError, match="No space left on device"):
        quantize_artifact(artifact, task, Int8Config.model_validate(ONNX))
    assert tree(artifact.folder) == before


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
    assert re.search(r"mIoU drop of .* points \(at most 0.5\)", verdict.reasons[0])
    assert any("of the pixels (at least 99 %)" in reason for reason in verdict.reasons)
    assert verdict.report["calibration_images"] == 8
    assert tree(segmenter.folder) == before


def test_pixels_labelled_slower_are_refused(segmenter, segmentation_task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3)))
    before = tree(segmenter.folder)
    [verdict] = quantize_artifact(segmenter, segmentation_task, SEGMENTS)
    assert (verdict.outcome, verdict.reasons) == ("refused", ("slower: 1.50 of FP32's time with 1 threads (below 1)",))
    assert tree(segmenter.folder) == before
