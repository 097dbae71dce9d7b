import json
from pathlib import Path

import numpy as np
import pytest

from edgemim.edge.regression import compare, read_benchmark
from edgemim.errors import UserError


def row(
    factor: float = 1.0, *, file: str = "onnx-fp32", disturbed: bool = False, noise: float = 0.01, seed: int = 0
) -> dict:
    blocks = factor * (10 + noise * 10 * np.random.default_rng(seed).standard_normal(5))
    return {
        "status": "ok",
        "model": "tiny",
        "file": file,
        "runtime": "onnxruntime",
        "batch": 1,
        "threads": 2,
        "block_medians_ms": blocks.tolist(),
        "disturbed": disturbed,
    }


def report(*rows: dict, cpu: str = "EPYC") -> dict:
    return {"machine": {"cpu": cpu}, "rows": list(rows)}


def test_a_slower_case_is_found_and_named() -> None:
    before = report(row(), row(file="onnx-int8"))
    changes, lost = compare(before, report(row(1.02, seed=1), row(1.3, file="onnx-int8", seed=2)))
    assert [change.verdict(0.05) for change in changes] == ["ok", "slower"]
    assert changes[1].name == "tiny onnx-int8 on onnxruntime, batch 1, 2 threads" and not lost
    assert changes[1].low < changes[1].ratio < changes[1].high and changes[1].ratio == pytest.approx(1.3, rel=0.03)


def test_noise_and_others_leave_it_undecided() -> None:
    noisy, _ = compare(report(row(noise=0.2)), report(row(1.15, noise=0.2, seed=3)))
    assert noisy[0].verdict(0.05) == "undecided"
    disturbed, _ = compare(report(row()), report(row(1.3, disturbed=True)))
    assert disturbed[0].verdict(0.05) == "undecided"


def test_faster_is_no_regression_and_a_lost_case_is_named() -> None:
    changes, lost = compare(report(row(), row(file="onnx-int8")), report(row(0.5)))
    assert changes[0].verdict(0.0) == "ok"
    assert lost == ["tiny onnx-int8 on onnxruntime, batch 1, 2 threads"]


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="measured on EPYC, the second on Xeon"):
        compare(report(row()), report(row(), cpu="Xeon"))
    with pytest.raises(UserError, match="share no case"):
        compare(report(row()), report({**row(), "status": "absent"}))
    (tmp_path / "benchmark.json").write_text('{"rows": [1]}')
    with pytest.raises(UserError, match=r"benchmark\.json is no benchmark"):
        read_benchmark(tmp_path)
    (tmp_path / "benchmark.json").write_text(json.dumps(report(row())))
    assert read_benchmark(tmp_path) == read_benchmark(tmp_path / "benchmark.json") == report(row())
