import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from edgemim.commands import doctor as module
from edgemim.commands.doctor import (
    DoctorConfig,
    doctor,
    gpu_findings,
    library_finding,
    load_finding,
    machine_findings,
    runtime_findings,
    speed_findings,
)
from edgemim.edge.machine import Load
from edgemim.edge.roofline import Roofline
from edgemim.errors import MissingLibrary, ModelRefused

LIGHT = module._LIBRARIES[:1]


def fake_package(folder: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def fake_tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_doctor_says_what_works_and_writes_it_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(module, "_LIBRARIES", LIGHT)
    result = doctor(DoctorConfig(out=tmp_path / "doctor", roofline=False))
    states = {finding["what"]: finding for finding in result["findings"]}
    assert states["onnxruntime"]["state"] == "ok"
    assert onnxruntime.__version__ in states["onnxruntime"]["text"]
    record = json.loads((tmp_path / "doctor" / "run.json").read_text())
    assert record["results"] == json.loads(json.dumps(result))
    output = capsys.readouterr().out
    assert "onnxruntime" in output
    assert "next: edgemim" in output


def test_doctor_works_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARIES", LIGHT)
    (tmp_path / "file").touch()
    result = doctor(DoctorConfig(out=tmp_path / "file" / "doctor", roofline=False))
    assert result["findings"][0]["what"] == "output folder"
    assert "file" in result["findings"][0]["text"]


def test_without_onnxruntime_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARIES", (("onnxruntime", "no_such_module", "runs every artifact"),))
    with pytest.raises(MissingLibrary, match=r"onnxruntime does not work here: .*pip install edgemim") as caught:
        doctor(DoctorConfig(out=tmp_path / "doctor", roofline=False))
    assert caught.value.exit_code == 4


def test_a_missing_library_names_its_extra() -> None:
    finding = library_finding("nncf", "no_such_module", "makes INT8 files")
    assert (finding.state, finding.text) == ("absent", "makes INT8 files: pip install 'edgemim[openvino]'")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libfoo.so.3: cannot open shared object file')", "libfoo.so.3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "status -4"),
    ],
)
def test_a_broken_library_is_found_without_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    fake_package(tmp_path, "onnx_broken_for_test", code, monkeypatch)
    finding = library_finding("onnx", "onnx_broken_for_test", "export")
    assert finding.state == "broken"
    assert finding.text.endswith("reinstall: pip install 'edgemim[train]'")
    assert reason in finding.text


def test_a_library_that_hangs_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "slow_for_test", "import time; time.sleep(30)", monkeypatch)
    monkeypatch.setattr(module, "_PROBE_TIMEOUT_S", 1)
    assert library_finding("onnx", "slow_for_test", "export").state == "broken"


def test_gpus_as_the_driver_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool(tmp_path, "echo 'NVIDIA H200, 575.57, 143771 MiB'; echo 'NVIDIA H200, 575.57, 143771 MiB'", monkeypatch)
    found = gpu_findings()
    assert [finding.state for finding in found] == ["ok", "ok"]
    assert found[0].text == "NVIDIA H200, 575.57, 143771 MiB"
    fake_tool(tmp_path, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", monkeypatch)
    assert gpu_findings()[0][1:] == ("broken", "Failed to initialize NVML: Driver/library version mismatch")
    monkeypatch.setenv("PATH", "")
    assert gpu_findings()[0].state == "absent"


def test_advice_on_int8_follows_the_instructions() -> None:
    machine = {
        "python": "3.12",
        "platform": "Linux",
        "cpu": "X",
        "usable_cpus": 2,
        "logical_cpus": 4,
        "cpu_flags": ["avx2"],
        "int8_instructions": [],
        "memory_gib": 8.0,
    }
    by_name = {finding.what: finding for finding in machine_findings(machine)}
    assert by_name["8-bit instructions"].state == "note"
    assert "hardly faster" in by_name["8-bit instructions"].text
    assert "--isa portable" in by_name["8-bit instructions"].text
    assert by_name["cpu"].state == "note" and "2 of 4 CPUs usable; this process is held" in by_name["cpu"].text
    assert "slower than FP32" in by_name["16-bit instructions"].text
    better = {finding.what: finding for finding in machine_findings({**machine, "int8_instructions": ["avx512_vnni"]})}
    assert better["8-bit instructions"].state == "ok"
    amx = {**machine, "cpu_flags": ["avx2", "amx_bf16"], "logical_cpus": 2}
    by_name = {finding.what: finding for finding in machine_findings(amx)}
    assert by_name["16-bit instructions"].text.startswith("amx_bf16: bfloat16 matrix products run faster")
    assert by_name["cpu"].state == "ok" and "held" not in by_name["cpu"].text


@pytest.mark.parametrize(("foreign", "state"), [(0.02, "ok"), (0.4, "note")])
def test_other_processes_are_told_of(foreign: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LISTEN_S", 0.0)
    monkeypatch.setattr(module.LoadMeter, "stop", lambda self: Load(0.0, foreign, 1.0))
    finding = load_finding()
    assert finding.state == state
    assert f"{foreign:.0%}" in finding.text


def test_speed_is_measured_and_becomes_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"fp32": "openvino 2026.4", "int8": "onnxruntime 1.31"}
    monkeypatch.setattr(
        module,
        "measure_roofline",
        lambda threads: Roofline(threads, 100.0 * threads, 400.0 * threads, 12.0, names, 0.3),
    )
    findings, rooflines = speed_findings(2)
    assert [roofline.threads for roofline in rooflines] == [1, 2]
    speeds = {finding.what: finding for finding in findings}
    assert list(speeds)[:3] == ["speed, 1 thread", "expect FP32, 1", "expect INT8, 1"]
    assert "FP32 200 GFLOP/s (openvino 2026.4)" in speeds["speed, 2 threads"].text
    assert speeds["speed, 2 threads"].state == "note" and "others took 30%" in speeds["speed, 2 threads"].text
    assert "ViT-Tiny/16 at 224 pixels: 15.7 to 33 ms" in speeds["expect FP32, 2"].text
    assert len(speed_findings(1)[1]) == 1

    def broken(threads: int) -> Roofline:
        raise ModelRefused("the roofline cannot be measured: status -4")

    monkeypatch.setattr(module, "measure_roofline", broken)
    (finding,) = speed_findings(2)[0]
    assert finding.state == "broken" and "status -4" in finding.text


def test_runtimes_on_gpus_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "missing", lambda runtime: None if runtime == "tensorrt" else f"{runtime} lacks a GPU")
    states = {finding.what: finding for finding in runtime_findings()}
    assert states["runtime tensorrt"].state == "ok"
    assert states["runtime onnxruntime-cuda"][1:] == ("absent", "onnxruntime-cuda lacks a GPU")


def test_a_probe_adds_what_the_library_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = library_finding("onnxruntime", "onnxruntime", "runs every artifact")
    assert finding.text.endswith("runs every artifact; providers " + ", ".join(onnxruntime.get_available_providers()))


def test_the_roofline_of_this_machine_joins_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARIES", LIGHT)
    result = doctor(DoctorConfig(out=tmp_path / "doctor"))
    assert result["roofline"][0]["threads"] == 1 and result["roofline"][0]["fp32_gflops"] > 0.5
    assert any(finding["what"] == "expect INT8, 1" for finding in result["findings"])


def test_the_process_itself_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from edgemim.commands import doctor as d; d._LIBRARIES = d._LIBRARIES[:1]\n"
        f"from pathlib import Path; d.doctor(d.DoctorConfig(out=Path({str(tmp_path)!r}), roofline=False))\n"
        "assert not {'torch', 'onnxruntime', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
