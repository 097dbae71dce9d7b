"""The report on INT8 files: figures of the gate, a row and a picture for each file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hard_to_quantise import ruin_projection
from PIL import Image
from small_run import stopwatch, timings

from edgemim.edge.artifact import Artifact, describe_file
from edgemim.errors import UserError
from edgemim.export import fidelity
from edgemim.export.quantize import Int8Config, quantize_artifact
from edgemim.export.quantize_report import int8_files, judge_again, report_figure, report_table, write_report

ONNX = Int8Config(targets=("onnx-int8",), images=60, seconds=0.05, threads=(1,), search=False, force=True)


def test_a_collapsed_file_is_found_out(artifact, task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kept by force once; judged again it does not pass, and the report says which block it is."""
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    assert int8_files(artifact) == []
    with pytest.raises(UserError, match="no INT8 files to report on"):
        judge_again(artifact, task, ONNX)
    ruin_projection(artifact.file(), artifact.file(), "blocks.1")
    entry = describe_file(artifact.folder, "model.onnx", format="onnx", precision="fp32")
    artifact.manifest = artifact.manifest.model_copy(update={"files": {"onnx-fp32": entry}})
    [made] = quantize_artifact(artifact, task, ONNX)
    assert made.outcome == "forced"
    opened = Artifact.open(artifact.folder)
    [verdict] = judge_again(opened, task, ONNX)
    assert verdict.outcome == "refused" and any("agreement" in reason for reason in verdict.reasons)
    cosine = verdict.report["block_cosine"]
    assert cosine["blocks.0"] > 0.999 > cosine["blocks.1"]
    same = ("agreement", "cosine", "block_cosine", "drop_points", "size_bytes", "recipe", "calibration_sha256")
    assert [verdict.report[name] for name in same] == [made.report[name] for name in same]
    write_report(tmp_path / "quantize", "name", {verdict.key: verdict.report})
    written = json.loads((tmp_path / "quantize" / "report.json").read_text())
    assert written["artifact"] == "name" and written["files"]["onnx-int8"]["reasons"] == list(verdict.reasons)
    with Image.open(tmp_path / "quantize" / "report.png") as picture:
        assert min(picture.size) > 400
    table = report_table([verdict])
    assert table.row_count == 1 and len(table.columns) == 11
    assert "onnx-int8" in list(table.columns[0].cells) and "refused" in list(table.columns[-1].cells)
    assert any("2.00×" in str(cell) for cell in table.columns[-3].cells)


def test_each_file_is_a_line_and_a_bar() -> None:
    def report(ratio: float, cosine: dict[str, float]) -> dict:
        speeds = [{"threads": threads, "ratio": ratio, "undecided": False} for threads in (1, 2)]
        more = {"metric": "mIoU", "answers": "pixels", "thresholds": {"min_agreement": 99.0}}
        return {"speeds": speeds, "block_cosine": cosine, "agreement": 99.5, "drop_points": 0.25, **more}

    cosine = {"blocks.0": 0.999, "blocks.1": 1.0}
    reports = {"onnx-int8": report(0.5, cosine), "openvino-int8": report(0.8, {**cosine, "head": 0.9})}
    blocks, speed, agreement = report_figure("name", reports).axes
    assert [line.get_label() for line in blocks.lines] == ["onnx-int8", "openvino-int8"]
    assert blocks.lines[0].get_ydata()[0] == pytest.approx(0.001)  # pyright: ignore[reportIndexIssue]
    assert [label.get_text() for label in blocks.get_xticklabels()] == ["blocks.0", "blocks.1", "head"]
    assert [bar.get_width() for bar in speed.patches] == [2.0, 1.25, 2.0, 1.25]  # pyright: ignore[reportAttributeAccessIssue]
    texts = [text.get_text() for text in agreement.texts]
    assert texts == ["99.50 %, mIoU -0.25 points"] * 2
