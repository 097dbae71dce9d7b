"""`edgemim doctor`: what this machine can run, how fast it should be, and how to get the rest."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgemim.config import Config
from edgemim.edge.expectation import VIT_TINY, expect
from edgemim.edge.machine import INSTALL, LoadMeter, describe, runtime_version
from edgemim.edge.roofline import Roofline, measure_roofline
from edgemim.edge.runtime import missing
from edgemim.edge.runtime.available import ON_GPU
from edgemim.errors import MissingLibrary, ModelRefused, UserError
from edgemim.run import RUNS, RunRecord, prepare_folder

_PROBE_TIMEOUT_S = 120
_LISTEN_S = 0.5
_CROWDED = 0.10
_HALF_FLAGS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "asimdhp", "bf16")
# Package, module, what it is for.
_LIBRARIES = (
    ("onnxruntime", "onnxruntime", "runs every artifact"),
    ("openvino", "openvino", "the fastest INT8 on CPUs"),
    ("nncf", "nncf", "makes INT8 files for OpenVINO"),
    ("opencv-python-headless", "cv2", "resizes images, reads and writes videos"),
    ("av", "av", "reads videos that OpenCV cannot, frame by frame as stored"),
    ("torch", "torch", "pretrain, finetune, evaluate, probe, export"),
    ("timm", "timm", "models and teachers"),
    ("onnx", "onnx", "export"),
    ("tensorrt", "tensorrt", "fastest on NVIDIA GPUs"),
    ("tensorrt_rtx", "tensorrt_rtx", "checks files for TensorRT without a GPU; runs them on NVIDIA RTX GPUs"),
)
_EXTRA = {"nncf": "openvino", "timm": "torch", "onnx": "torch", "opencv-python-headless": "onnxruntime"}
# Programs that import a library and may say more about it in their last line.
_PROBES = {
    "torch": "import torch; count = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
    "names = ', '.join(torch.cuda.get_device_name(i) for i in range(count)); "
    "print(f'GPU {names}, bfloat16 {\"yes\" if torch.cuda.is_bf16_supported() else \"no\"}' if count else 'no GPU usable')",
    "onnxruntime": "import onnxruntime as o; print('providers', ', '.join(o.get_available_providers()))",
    "openvino": "import openvino as o; print('devices', ', '.join(o.Core().available_devices) or 'none')",
    "tensorrt": "import tensorrt as t; t.Builder",
    "opencv-python-headless": "import cv2; print('threads', cv2.getNumThreads())",
}


class DoctorConfig(Config):
    """Look at the CPU, the GPU and the libraries, load each of them once in a process of its own, and say what works."""

    out: Path = RUNS / "doctor"
    """Where run.json goes."""
    roofline: bool = True
    """Measure matrix products and memory for some seconds, and say from them how fast a ViT-Tiny should be."""


class Finding(NamedTuple):
    """One line of the diagnosis."""

    what: str
    state: Literal["ok", "absent", "broken", "note"]
    text: str


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Diagnose; returns {machine, roofline, findings}. Raises MissingLibrary if not even ONNX Runtime works."""
    findings: list[Finding] = []
    enabled = True
    try:
        prepare_folder(config.out, resume=True)
    except UserError as error:
        enabled = False
        findings.append(Finding("output folder", "note", str(error)))
    with RunRecord("doctor", config.out, config, enabled=enabled) as record:
        machine = describe()
        findings += [*machine_findings(machine), load_finding(), *gpu_findings()]
        libraries = [library_finding(*library) for library in _LIBRARIES]
        findings += [*libraries, *runtime_findings()]
        rooflines: list[Roofline] = []
        if config.roofline:
            found, rooflines = speed_findings(machine["usable_cpus"])
            findings += found
        result = {
            "machine": machine,
            "roofline": [asdict(roofline) for roofline in rooflines],
            "findings": [finding._asdict() for finding in findings],
        }
        record.results.update(result)
        _show(findings)
        if libraries[0].state != "ok":
            raise MissingLibrary(f"onnxruntime does not work here: {libraries[0].text}")
    trains = all(finding.state == "ok" for finding in libraries if finding.what in ("torch", "timm", "onnx"))
    print(
        "next: edgemim quickstart" if trains else "next: edgemim benchmark ARTIFACT, or install the rest as said above"
    )
    return result


def machine_findings(machine: dict[str, Any]) -> list[Finding]:
    """What the CPU is good for."""
    flags = ", ".join(machine["cpu_flags"]) or "no known ones"
    int8 = machine["int8_instructions"]
    advice = (
        f"{', '.join(int8)}: INT8 files take full 8-bit weights (--isa vnni) and should run faster than FP32"
        if int8
        else "no dot products of 8-bit numbers (VNNI): INT8 files take 7-bit weights (--isa portable), are smaller, "
        "but hardly faster than FP32"
    )
    usable, logical = machine["usable_cpus"], machine["logical_cpus"]
    cpu = f"{machine['cpu']}, {usable} of {logical} CPUs usable"
    if usable < (logical or 0):
        cpu += "; this process is held to these (affinity or container): more threads than that slow each other down"
    return [
        Finding("python", "ok", f"{machine['python']} on {machine['platform']}"),
        Finding("cpu", "ok" if usable == logical else "note", cpu),
        Finding("cpu flags", "ok", flags),
        Finding("8-bit instructions", "ok" if int8 else "note", advice),
        Finding("16-bit instructions", "ok", _half_advice(machine["cpu_flags"])),
        Finding("memory", "ok" if machine["memory_gib"] >= 2 else "note", f"{machine['memory_gib']} GiB"),
    ]


def _half_advice(flags: list[str]) -> str:
    fast = [flag for flag in flags if flag in _HALF_FLAGS]
    if any(flag.startswith("amx") for flag in fast):
        return f"{', '.join(fast)}: bfloat16 matrix products run faster than FP32"
    return f"{', '.join(fast)}: some half-precision products; measure before you trust them" if fast else (
        "none: on this CPU half precision is emulated and slower than FP32"
    )  # fmt: skip


def load_finding() -> Finding:
    """What others take of the CPUs right now."""
    meter = LoadMeter()
    time.sleep(_LISTEN_S)
    foreign = meter.stop().foreign
    told = f"others take {foreign:.0%} of the usable CPUs"
    if foreign <= _CROWDED:
        return Finding("load", "ok", told)
    return Finding("load", "note", f"{told}: latencies measured now are longer than this machine's own")


def speed_findings(cpus: int) -> tuple[list[Finding], list[Roofline]]:
    """The roofline with one and with all threads, and what it lets expect of a ViT-Tiny."""
    findings, rooflines = [], []
    for threads in dict.fromkeys((1, cpus)):
        name = f"speed, {threads} thread{'s' * (threads > 1)}"
        try:
            found = measure_roofline(threads)
        except (MissingLibrary, ModelRefused) as error:
            return [*findings, Finding(name, "broken", str(error))], rooflines
        rooflines.append(found)
        disturbed = f" (others took {found.foreign_load:.0%})" if found.foreign_load > _CROWDED else ""
        peaks = (
            f"FP32 {found.fp32_gflops:.0f} GFLOP/s ({found.libraries['fp32']}), INT8 {found.int8_gops:.0f} GOP/s "
            f"({found.libraries['int8']}), memory {found.memory_gb_per_s:.0f} GB/s{disturbed}"
        )
        findings.append(Finding(name, "note" if disturbed else "ok", peaks))
        for precision in ("fp32", "int8"):
            expected = expect(VIT_TINY, precision, found)
            text = f"{VIT_TINY.name}: {expected} ({expected.derived})"
            findings.append(Finding(f"expect {precision.upper()}, {threads}", "ok", text))
    return findings, rooflines


def runtime_findings() -> list[Finding]:
    """The runtimes on GPUs: whether each could run here, and what it lacks."""
    told = {runtime: missing(runtime) for runtime in ON_GPU}
    return [
        Finding(f"runtime {runtime}", "absent" if fault else "ok", fault or "library and GPU are there")
        for runtime, fault in told.items()
    ]


def gpu_findings() -> list[Finding]:
    """NVIDIA GPUs, as the driver's own tool lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [Finding("gpu", "absent", "no NVIDIA driver found: everything runs on the CPU")]
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Finding("gpu", "broken", f"nvidia-smi does not answer: {error}")]
    if answer.returncode != 0:
        return [Finding("gpu", "broken", _last_line(answer.stdout + answer.stderr))]
    return [Finding("gpu", "ok", line.strip()) for line in answer.stdout.splitlines() if line.strip()]


def library_finding(package: str, module: str, purpose: str) -> Finding:
    """Whether a library is installed and can be imported, tried in a child: a broken one may kill its process."""
    remedy = INSTALL[_EXTRA.get(package, package)]
    if importlib.util.find_spec(module) is None:
        return Finding(package, "absent", f"{purpose}: {remedy}")
    command = [sys.executable, "-c", _PROBES.get(package, f"import {module}")]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Finding(package, "broken", f"import takes more than {_PROBE_TIMEOUT_S} s; reinstall: {remedy}")
    if answer.returncode != 0:
        reason = _last_line(answer.stderr) or f"its process ended with status {answer.returncode}"
        return Finding(package, "broken", f"{reason}; reinstall: {remedy}")
    more = f"; {_last_line(answer.stdout)}" if package in _PROBES and answer.stdout.strip() else ""
    return Finding(package, "ok", f"{runtime_version(package) or 'version unknown'}: {purpose}{more}")


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "")


def _show(findings: list[Finding]) -> None:
    colours = {"ok": "green", "absent": "yellow", "broken": "red", "note": "yellow"}
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(finding.what, finding.state, escape(finding.text), style=colours[finding.state])
    Console().print(table)
