"""`edgemim doctor`: what this machine can run, and how to get the rest."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgemim.config import Config
from edgemim.edge.machine import INSTALL, describe, runtime_version
from edgemim.errors import MissingLibrary, UserError
from edgemim.run import RUNS, RunRecord, prepare_folder

_PROBE_TIMEOUT_S = 120
# Package, module, what it is for.
_LIBRARIES = (
    ("onnxruntime", "onnxruntime", "runs every artifact"),
    ("openvino", "openvino", "the fastest INT8 on Intel CPUs"),
    ("nncf", "nncf", "makes INT8 files for OpenVINO"),
    ("torch", "torch", "pretrain, finetune, evaluate, probe, export"),
    ("timm", "timm", "models and teachers"),
    ("onnx", "onnx", "export"),
    ("tensorrt_rtx", "tensorrt_rtx", "NVIDIA RTX GPUs"),
)
_EXTRA = {"nncf": "openvino", "timm": "torch", "onnx": "torch"}
_PROBES = {
    "torch": "import json, torch; gpu = torch.cuda.is_available(); print(json.dumps({'devices': "
    "[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if gpu else [], "
    "'bf16': gpu and torch.cuda.is_bf16_supported()}))",
}


class DoctorConfig(Config):
    """Look at the CPU, the GPU and the libraries, load each of them once in a process of its own, and say what works."""

    out: Path = RUNS / "doctor"
    """Where run.json goes."""


class Finding(NamedTuple):
    """One line of the diagnosis."""

    what: str
    state: Literal["ok", "absent", "broken", "note"]
    text: str


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Diagnose; returns {machine, findings}. Raises MissingLibrary if not even ONNX Runtime works."""
    findings: list[Finding] = []
    enabled = True
    try:
        prepare_folder(config.out, resume=True)
    except UserError as error:
        enabled = False
        findings.append(Finding("output folder", "note", str(error)))
    with RunRecord("doctor", config.out, config, enabled=enabled) as record:
        machine = describe()
        findings += [*machine_findings(machine), *gpu_findings()]
        libraries = [library_finding(*library) for library in _LIBRARIES]
        findings += libraries
        result = {"machine": machine, "findings": [finding._asdict() for finding in findings]}
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
        f"{', '.join(int8)}: INT8 models should run faster than FP32"
        if int8
        else "none: INT8 models will be smaller, but hardly faster than FP32"
    )
    return [
        Finding("python", "ok", f"{machine['python']} on {machine['platform']}"),
        Finding("cpu", "ok", f"{machine['cpu']}, {machine['usable_cpus']} of {machine['logical_cpus']} CPUs usable"),
        Finding("cpu flags", "ok", flags),
        Finding("8-bit instructions", "ok" if int8 else "note", advice),
        Finding("memory", "ok" if machine["memory_gib"] >= 2 else "note", f"{machine['memory_gib']} GiB"),
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
    return Finding(
        package, "ok", f"{runtime_version(package) or 'version unknown'}: {purpose}{_devices(answer.stdout)}"
    )


def _devices(output: str) -> str:
    """What torch said about GPUs; nothing for other libraries."""
    try:
        facts = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return ""
    if not facts["devices"]:
        return "; no GPU usable"
    return f"; GPU {', '.join(facts['devices'])}, bfloat16 {'yes' if facts['bf16'] else 'no'}"


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
