"""The page stands alone and says what was measured, what was not, and how noisy it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from edgemim.edge.latency_page import write_page

MACHINE = {"cpu": "Some <CPU>", "usable_cpus": 2, "memory_gib": 4.0, "int8_instructions": ["avx512_vnni"]}
MACHINE |= {"cpu_flags": ["avx2"], "platform": "Linux"}


def row(**changes: Any) -> dict[str, Any]:
    known = {"status": "ok", "model": "m", "file": "onnx-int8", "runtime": "openvino", "version": "1.2", "batch": 1}
    known |= {
        "threads": 2,
        "precision": "int8",
        "throughput_images_per_s": 100.0,
        "gflop": 2.51,
        "parameters": 5_500_000,
    }
    known |= {f"latency_{name}_ms": 10.0 for name in ("p50", "p50_low", "p50_high", "p90", "p99")}
    known |= {"speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1, "speedup_disturbed": False, "cold_start_s": 0.5}
    known |= {"baseline": "fp32 on pytorch", "roofline_share": 0.25, "model_size_mib": 6.2, "memory_peak_mib": 99.0}
    return {**known, "foreign_load": 0.01, "disturbed": False, **changes}


def page(path: Path, *rows: dict[str, Any], notes: tuple[str, ...] = ()) -> str:
    result = {"machine": MACHINE, "command": "edgemim benchmark a --threads 2", "rows": list(rows), "notes": notes}
    return write_page(result, path / "benchmark.html").read_text()


def test_everything_is_in_the_one_file(tmp_path: Path) -> None:
    scored = {"score": 79.5, "metric": "top-1", "score_images": 500}
    text = page(tmp_path, row(**scored), row(file="fp32", runtime="pytorch", precision="fp32", **scored), row(batch=8))
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "<script" not in text
    assert text.count("data:image/png;base64,") == 5  # accuracy, and two pictures for each batch size
    for words in ("Batch 1, 2 threads", "Batch 8, 2 threads", "edgemim benchmark a --threads 2", "Some &lt;CPU&gt;"):
        assert words in text
    assert "top-1 on 500 images" in text and "2.51 GFLOP an image" in text and "5,500,000" in text
    assert "no slowing of the machine was seen" in text


def test_noise_and_what_is_absent_is_told(tmp_path: Path) -> None:
    absent = {"status": "absent", "model": "m", "file": "onnx-fp32", "runtime": "tensorrt", "reason": "there is no GPU"}
    text = page(tmp_path, row(disturbed=True, foreign_load=0.4), absent, notes=("the clock fell",))
    assert "in 1 of 1 cases other processes took over 10 %" in text and "40% !" in text
    assert "The clock fell." in text
    assert "m onnx-fp32 on tensorrt: absent: there is no GPU" in text
    assert "Latency against accuracy" not in text


@pytest.mark.parametrize("status", ["absent", "failed"])
def test_a_page_of_nothing_measured(tmp_path: Path, status: str) -> None:
    text = page(tmp_path, {"status": status, "model": "m", "file": "f", "runtime": "r", "reason": "it is so"})
    assert "Nothing on Some" in text and "it is so" in text
