"""The roofline: products against numpy's, plausible figures from the child, and what is said where no library works."""

import math
import time

import numpy as np
import onnx
import onnxruntime
import pytest

from edgemim.edge import roofline
from edgemim.edge.roofline import Roofline, measure_here, measure_roofline, product_model
from edgemim.errors import MissingLibrary, ModelRefused


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_file_written_by_hand_is_valid_and_multiplies(precision: str) -> None:
    left, right = roofline._matrices((5, 130, 7))[precision]
    content = product_model(left, right)
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {"a": left})[0]
    expected = left.astype(np.float64) @ right.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 if precision == "fp32" else 0)


def test_the_child_measures_what_numpy_reaches_or_more() -> None:
    found = measure_roofline(1)
    square = np.random.default_rng(0).standard_normal((512, 512), np.float32)
    shortest = math.inf
    for _ in range(50):
        began = time.perf_counter()
        square @ square
        shortest = min(shortest, time.perf_counter() - began)
    # A quarter: others may take the CPU from the child, and numpy may use further threads.
    assert found.fp32_gflops > 2 * 512**3 / shortest / 1e9 / 4
    assert found.int8_gops > 0.5 * found.fp32_gflops
    assert 0.5 < found.memory_gb_per_s < 2000
    assert set(found.libraries) == {"fp32", "int8"} and 0 <= found.foreign_load <= 1


def test_share_of_the_peak_by_precision() -> None:
    machine = Roofline(2, 100.0, 400.0, 10.0, {}, 0.0)
    assert machine.share(2.5, 50.0, "fp32") == pytest.approx(0.5)
    assert machine.share(2.5, 50.0, "int8") == pytest.approx(0.125)
    assert machine.peak("fp16") == 100.0


def test_a_library_that_breaks_leaves_the_figures_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(threads: int):
        raise ValueError("no such kernel")

    monkeypatch.setattr(roofline, "_openvino_products", broken)
    found = measure_here(1, seconds=0.01)
    assert all(name.startswith("onnxruntime") for name in found.libraries.values())
    monkeypatch.setattr(roofline, "_onnxruntime_products", broken)
    with pytest.raises(MissingLibrary, match="pip install edgemim"):
        measure_here(1, seconds=0.01)


def test_a_child_that_dies_or_hangs_is_one_sentence(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    monkeypatch.setattr(roofline.sys, "executable", str(program))
    for script, fault, words in (
        ("echo gone >&2; exit 4", MissingLibrary, "gone"),
        ("kill -ILL $$", ModelRefused, "cannot be measured: status -4"),
        ("sleep 5", ModelRefused, "more than 0 s"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(roofline, "_TIMEOUT_S", 0.3)
        with pytest.raises(fault, match=words):
            measure_roofline(1)


def test_many_threads_get_more_rows() -> None:
    assert list(roofline._shapes(2)) == [(256, 768, 768), (197, 192, 768)]
    assert next(roofline._shapes(16)) == (1024, 768, 768)
