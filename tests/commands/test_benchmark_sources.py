"""What could be measured, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_artifact import tiny_artifact
from tiny_tracker import tiny_tracker

from edgemim.commands.benchmark_sources import RUNTIMES, find_cases, find_sources
from edgemim.edge.machine import usable_cpus
from edgemim.errors import UserError


def test_a_cached_tracker_has_two_networks_in_pytorch(tmp_path: Path) -> None:
    artifact = tiny_tracker(tmp_path / "a", "cached")
    artifact.manifest = artifact.manifest.model_copy(update={"source": {"run": str(tmp_path)}})
    found = find_sources([artifact], ("pytorch", "pytorch-compiled", "onnxruntime"), ())
    assert [(source.key, source.runtime, source.graph) for source in found] == [
        ("fp32", "pytorch", ""),
        ("fp32", "pytorch-compiled", ""),
        ("fp32-template", "pytorch", "-template"),
        ("fp32-template", "pytorch-compiled", "-template"),
        ("onnx-fp32", "onnxruntime", ""),
        ("onnx-fp32-template", "onnxruntime", "-template"),
    ]


def test_cases_of_one_batch_and_thread_count_stand_together(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", int8=True)
    sources = find_sources([artifact], ("onnxruntime",), ())
    cases, rows = find_cases(sources, (4, 1, 4), (1, usable_cpus(), 0, 1))
    threads = list(dict.fromkeys((1, usable_cpus())))
    assert not rows
    assert [(case.batch, case.threads, case.source.key) for case in cases] == [
        (batch, count, key) for batch in (4, 1) for count in threads for key in ("onnx-fp32", "onnx-int8")
    ]


def test_patterns_choose_files_and_one_that_fits_nothing_is_a_mistake(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", int8=True)
    found = find_sources([artifact], ("onnxruntime",), ("*-int8",))
    assert [source.key for source in found] == ["onnx-int8"]
    with pytest.raises(UserError, match=r"--files onnx-int: .*did you mean 'onnx-int8'"):
        find_sources([artifact], ("onnxruntime",), ("*-int8", "onnx-int"))


def test_arithmetic_is_the_manifest_s_or_counted(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", int8=True)
    counted = [source.row()["gflop"] for source in find_sources([artifact], RUNTIMES[2:3], ())]
    assert counted == pytest.approx(2 * [2e-9 * (3 * 16 * 16 * 32 + 32 * 4)])
    other = tiny_artifact(tmp_path / "b")
    other.manifest = other.manifest.model_copy(update={"gflop": {"onnx-fp32": 7.0}})
    assert find_sources([other], ("onnxruntime",), ())[0].row()["gflop"] == 7.0
