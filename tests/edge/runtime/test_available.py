"""What is missing is said in one sentence with its remedy, and nothing is imported to know it."""

import subprocess
import sys

import pytest

from edgemim.edge.runtime import READERS, available, missing
from edgemim.edge.runtime.available import ON_GPU, fault_of
from edgemim.errors import MissingLibrary, NoGpu


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "gpu_fault", lambda: "there is no NVIDIA driver here")


def test_what_runs_here_misses_nothing() -> None:
    assert missing("onnxruntime") is None
    for readers in READERS.values():
        for runtime in readers:
            sentence = missing(runtime)
            assert sentence is None or (runtime in sentence and "\n" not in sentence)


@pytest.mark.usefixtures("no_gpu")
def test_library_and_gpu_are_told_apart(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    fault = fault_of("tensorrt")
    assert isinstance(fault, MissingLibrary)
    assert "pip install tensorrt" in str(fault) and "no NVIDIA driver" in str(fault)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    (tmp_path / "tensorrt_rtx.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    fault = fault_of("tensorrt")
    assert isinstance(fault, NoGpu) and "needs an NVIDIA GPU" in str(fault)
    monkeypatch.setattr(available, "gpu_fault", lambda: None)
    assert missing("tensorrt") is None


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_a_provider_is_there_if_its_library_is(tmp_path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(available, "gpu_fault", lambda: None)
    (tmp_path / "capi").mkdir()
    monkeypatch.setattr(available, "_folder", lambda package: tmp_path)
    assert "onnxruntime-gpu" in (missing(f"onnxruntime-{kind}") or "")
    (tmp_path / "capi" / f"libonnxruntime_providers_{kind}.so").touch()
    assert missing(f"onnxruntime-{kind}") is None


@pytest.mark.usefixtures("no_gpu")
def test_asking_imports_no_runtime() -> None:
    code = (
        "import sys\nfrom edgemim.edge.runtime import missing\n"
        f"[missing(name) for name in ('onnxruntime', 'openvino', *{ON_GPU!r})]\n"
        "assert not {'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
