"""What this machine is and how busy others keep it: CPU flags, usable CPUs, versions, foreign load, peak memory."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from edgemim.run import installed_versions

# What decides the speed of matrix products in 8 bits and in half precision, on x86 and on ARM.
CPU_FLAGS = (
    "sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 "
    "asimd asimdhp asimddp i8mm bf16 sve sve2"
).split()
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Instructions for products of bfloat16 that OpenVINO has kernels for."""
INT8_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
INSTALL = {
    "onnxruntime": "pip install edgemim",
    "openvino": "pip install 'edgemim[openvino]'",
    "torch": "pip install 'edgemim[train]'",
    "tensorrt_rtx": "pip install 'edgemim[tensorrt]'",
    "tensorrt": "pip install tensorrt (its libraries come from NVIDIA's own index), or with NVIDIA RTX GPUs "
    "pip install 'edgemim[tensorrt]'",
    "onnxruntime-gpu": "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "av": "pip install 'edgemim[video]'",
}


def usable_cpus() -> int:
    """Number of logical CPUs that this process may use: its affinity, and in a container its quota, rounded up."""
    allowed = len(_affinity())
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control group, or no quota ("max")
        pass
    return max(1, allowed)


def cpu_flags(cpuinfo: str | None = None) -> tuple[str, ...]:
    """Those of CPU_FLAGS that the CPU has, from the text of /proc/cpuinfo (read if not given); empty if unknown."""
    words = set(_cpuinfo_value(cpuinfo, "flags", "Features").split())
    return tuple(flag for flag in CPU_FLAGS if flag in words)


def cpu_model(cpuinfo: str | None = None) -> str:
    """The CPU's name, as the system tells it."""
    return _cpuinfo_value(cpuinfo, "model name", "Model") or platform.processor() or platform.machine()


def runtime_version(name: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """The machine as a mapping for reports: names, flags, memory, versions."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cpu_flags": list(cpu_flags()),
        "int8_instructions": sorted(INT8_FLAGS & set(cpu_flags())),
        "usable_cpus": usable_cpus(),
        "logical_cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": installed_versions(),
    }


def peak_memory_mib() -> float:
    """Largest resident memory of this process since it started, MiB."""
    # getrusage would hand on the maximum of the process that started this one; VmHWM begins anew at exec.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Load(NamedTuple):
    """CPU use over a stretch of time, in shares of the usable CPUs: 1.0 is all of them."""

    own: float
    foreign: float
    seconds: float


class LoadMeter:
    """Measures what other processes take of the CPUs that this one may use, stolen time of a virtual machine included.

    `pids` are further processes that count as own (children that measure). The system counts in hundredths of a
    second: over 0.2 s on two CPUs the resolution is 2.5 %.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._own = [psutil.Process(), *(psutil.Process(pid) for pid in pids)]
        self._start = self._read()

    def _read(self) -> tuple[float, float, float]:
        own = 0.0
        for process in self._own:
            try:
                times = process.cpu_times()
            except psutil.Error:  # it has ended; its share then counts as foreign
                continue
            own += times.user + times.system
        return time.perf_counter(), _busy_seconds(), own

    def restart(self) -> None:
        """Begin a new stretch."""
        self._start = self._read()

    def stop(self) -> Load:
        """The load since construction or the last restart."""
        began, busy, own = self._start
        now, busy_now, own_now = self._read()
        seconds = max(now - began, 1e-9)
        capacity = seconds * len(_affinity())
        used = max(0.0, own_now - own)
        foreign = (busy_now - busy - used) / capacity
        return Load(used / capacity, min(1.0, max(0.0, foreign)), seconds)


def _busy_seconds() -> float:
    cpus = psutil.cpu_times(percpu=True)
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(cpus[index], kind, 0.0) for index in _affinity() if index < len(cpus) for kind in kinds)


def _affinity() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _cpuinfo_value(cpuinfo: str | None, *keys: str) -> str:
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text() if path.exists() else ""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""
