"""Rows say what was timed: ratios an image, shares of the roofline, scores that the manifest knows, and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_artifact import tiny_artifact

from edgemim.commands.benchmark_rows import best_ratios, group_rows
from edgemim.commands.benchmark_sources import Case, Source
from edgemim.edge.artifact import Artifact
from edgemim.edge.benchmark import Block, Timing
from edgemim.edge.isolated import CaseFailed, IsolatedResult
from edgemim.edge.roofline import Roofline

ROOF = Roofline(1, 100.0, 400.0, 10.0, {}, 0.0)


def timed(milliseconds: float, precision: str = "fp32", images: int = 1, **facts: object) -> IsolatedResult:
    drift = (1.0, 1.1, 0.9, 1.05, 0.95)
    blocks = tuple(Block(np.full(5, milliseconds * step), 0.01, 0.01) for step in drift)
    facts = {"precision": precision, "images_per_call": images, **facts}
    return IsolatedResult(Timing(blocks, (0.0,) * 5), facts, 100.0, 50.0, 0.5)


def case(artifact: Artifact, key: str, runtime: str, batch: int = 1) -> Case:
    return Case(Source(artifact, "tiny", key, runtime), batch, 1)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    made = tiny_artifact(tmp_path / "a", int8=True)
    report = {"metric": "top-1", "score_fp32": 80.0, "score_int8": 79.5, "agreement": 99.0, "labelled": 500}
    quantization = {"onnx-int8": report}
    made.manifest = made.manifest.model_copy(update={"quantization": quantization, "gflop": {"onnx-fp32": 0.5}})
    return made


def test_ratios_shares_and_scores(artifact: Artifact) -> None:
    results = {
        case(artifact, "onnx-fp32", "onnxruntime"): timed(10.0),
        case(artifact, "fp32", "pytorch"): timed(20.0),
        case(artifact, "onnx-int8", "onnxruntime"): timed(5.0, "int8"),
        case(artifact, "onnx-int8", "openvino-throughput"): timed(16.0, "int8", 8, streams=2, requests=2),
    }
    rows = group_rows(list(results), results, ROOF)
    assert [row["speedup"] for row in rows] == pytest.approx([2, 1, 4, 10])
    assert {row["baseline"] for row in rows} == {"fp32 on pytorch"}
    # 0.5 GFLOP in 10 ms are half of 100 GFLOP/s; in 5 ms a quarter of 400; 8 images in 16 ms as 2 ms each.
    assert [row["roofline_share"] for row in rows] == pytest.approx([0.5, 0.25, 0.25, 0.625])
    assert [row["score"] for row in rows] == [80.0, 80.0, 79.5, 79.5]
    assert [row["latency_p50_ms"] for row in rows] == [10.0, 20.0, 5.0, None]
    assert rows[3]["streams"] == 2
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in rows)
    assert all(row["roofline_share"] is None for row in group_rows(list(results), results, None))


def test_int8_beside_the_best_fp32_of_a_runtime(artifact: Artifact) -> None:
    results = {
        case(artifact, "fp32", "pytorch"): timed(1.0),  # faster than all, but no file
        case(artifact, "onnx-fp32", "onnxruntime"): timed(12.0),
        case(artifact, "onnx-fp32", "openvino"): timed(10.0),
        case(artifact, "onnx-int8", "openvino"): timed(30.0, "int8"),
        case(artifact, "onnx-int8", "onnxruntime"): timed(5.0, "int8"),
        case(artifact, "onnx-int8", "tensorrt"): CaseFailed("no GPU", absent=True),
    }
    (best,) = best_ratios(list(results), results)
    assert (best["fp32"], best["int8"]) == ("onnx-fp32 on openvino", "onnx-int8 on onnxruntime")
    assert best["speedup"] == pytest.approx(2)
    del results[case(artifact, "onnx-int8", "openvino")], results[case(artifact, "onnx-int8", "onnxruntime")]
    assert best_ratios(list(results), results) == []


def test_what_failed_says_so(artifact: Artifact) -> None:
    results = {
        case(artifact, "onnx-fp32", "onnxruntime"): CaseFailed("its process was killed by SIGSEGV"),
        case(artifact, "onnx-int8", "onnxruntime"): timed(5.0, "int8"),
        case(artifact, "onnx-int8", "tensorrt"): CaseFailed("no GPU", absent=True),
    }
    rows = group_rows(list(results), results, ROOF)
    assert [row["status"] for row in rows] == ["failed", "ok", "absent"]
    assert "SIGSEGV" in rows[0]["reason"]
    assert rows[1]["speedup"] == 1.0  # of nothing older than itself
