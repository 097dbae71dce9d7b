"""What `edgemim benchmark` could measure: model files and PyTorch networks on runtimes, or the reason why not."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edgemim.commands.benchmark_cases import COMPILED, EAGER, THROUGHPUT, TORCH, run_folder
from edgemim.config import suggest
from edgemim.edge.artifact import Artifact
from edgemim.edge.isolated import IsolatedCase
from edgemim.edge.machine import INSTALL, runtime_version, usable_cpus
from edgemim.edge.runtime import READERS, missing
from edgemim.edge.runtime.available import ON_GPU
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX
from edgemim.errors import EdgemimError, UserError

RUNTIMES = (EAGER, COMPILED, "onnxruntime", "openvino", THROUGHPUT, *ON_GPU)
_MIB = 2**20


@dataclass(frozen=True)
class Source:
    """A network in one form on one runtime. `reason` is why it cannot be measured, with the row's status."""

    artifact: Artifact
    model: str
    key: str
    runtime: str
    status: str = ""
    reason: str = ""

    @property
    def graph(self) -> str:
        """Which of the artifact's graphs it is: '' or a cached tracker's '-template'."""
        return TEMPLATE_SUFFIX if self.key.endswith(TEMPLATE_SUFFIX) else ""

    def row(self, **more: Any) -> dict[str, Any]:
        """What is known before measuring."""
        size = _size_bytes(self)
        return {
            "artifact": str(self.artifact.folder),
            "model": self.model,
            "task": self.artifact.manifest.task,
            "parameters": self.artifact.manifest.parameters or None,
            "file": self.key,
            "runtime": self.runtime,
            "version": runtime_version("torch" if self.runtime in TORCH else self.runtime.partition("-")[0]),
            "model_size_mib": size / _MIB if size else None,
            "gflop": _gflop(self.artifact, self.graph),
            **more,
        }


@dataclass(frozen=True)
class Case:
    """A source at one batch size and thread count."""

    source: Source
    batch: int
    threads: int

    def row(self, **more: Any) -> dict[str, Any]:
        """What is known before measuring."""
        return {**self.source.row(), "batch": self.batch, "threads": self.threads, **more}

    def open(self) -> IsolatedCase:
        """Start its process. Raises CaseFailed."""
        arguments = {
            "folder": str(self.source.artifact.folder),
            "key": self.source.key,
            "runtime": self.source.runtime,
            "batch": self.batch,
            "threads": self.threads,
        }
        return IsolatedCase("edgemim.commands.benchmark_cases:open_case", arguments, threads=self.threads)


def find_sources(artifacts: Sequence[Artifact], runtimes: Sequence[str], files: Sequence[str]) -> list[Source]:
    """Everything that could be measured, PyTorch first. Raises UserError if a pattern of `files` fits no file."""
    known = {key for artifact in artifacts for key in artifact.manifest.files}
    for pattern in files:
        if not any(fnmatchcase(key, pattern) for key in known):
            raise UserError(f"--files {pattern}: no artifact has such a file{suggest(pattern, known)}")
    names = _names(artifacts)
    return [
        source
        for artifact, name in zip(artifacts, names, strict=True)
        for source in (*_torch_sources(artifact, name, runtimes), *_file_sources(artifact, name, runtimes, files))
    ]


def find_cases(
    sources: Sequence[Source], batches: Sequence[int], threads: Sequence[int]
) -> tuple[list[Case], list[dict[str, Any]]]:
    """The cases, those of one batch size and thread count together, and a row for each that cannot run.

    Raises UserError on a number that is none of images or threads.
    """
    for name, numbers, least in (("batch", batches, 1), ("threads", threads, 0)):
        if not numbers or min(numbers) < least:
            raise UserError(f"{name} is {min(numbers, default='empty')}; {_ALLOWED[name]}")
    rows = [source.row(status=source.status, reason=source.reason) for source in sources if source.status]
    cases = []
    counts = dict.fromkeys(count or usable_cpus() for count in threads)
    for batch, count in itertools.product(dict.fromkeys(batches), counts):
        for source in sources:
            case = Case(source, batch, count)
            fixed = source.artifact.manifest.input_shape[0]
            if source.status:
                continue
            if fixed in (None, batch):
                cases.append(case)
            else:
                rows.append(case.row(status="skipped", reason=f"made for batch {fixed} only"))
    return cases, rows


_ALLOWED = {"batch": "give positive numbers", "threads": "give 0 for all usable CPUs, or positive numbers"}


def peer_artifacts(
    names: Sequence[str], folder: Path, runtimes: Sequence[str]
) -> tuple[list[Artifact], list[dict[str, Any]]]:
    """timm's networks as artifacts under `folder`, and a row for each that cannot be one.

    Raises UserError on a name that timm does not know.
    """
    if not names:
        return [], []
    blank = {"artifact": None, "task": "classification", "file": "fp32", "runtime": "timm", "version": None}
    if absent := [name for name in ("torch", "timm", "onnx") if importlib.util.find_spec(name) is None]:
        reason = f"peers need {', '.join(absent)}: {INSTALL['torch']}"
        return [], [{**blank, "model": name, "status": "absent", "reason": reason} for name in names]
    from edgemim.export.timm_peer import check_names, peer_artifact

    check_names(names)
    artifacts, rows = [], []
    for name in dict.fromkeys(names):
        try:
            artifacts.append(peer_artifact(name, folder / name))
        except EdgemimError as error:
            rows.append({**blank, "model": name, "status": "failed", "reason": str(error)})
    return artifacts, rows


def _names(artifacts: Sequence[Artifact]) -> list[str]:
    """A name for each artifact that no other has: the model's, else with what its folder does not share with others."""
    counts = Counter(artifact.manifest.name for artifact in artifacts)
    folders = [artifact.folder.resolve() for artifact in artifacts]
    above = os.path.commonpath(folders) if folders else ""
    return [
        artifact.manifest.name
        if counts[artifact.manifest.name] == 1
        else f"{artifact.manifest.name} in {os.path.relpath(folder, above)}"
        for artifact, folder in zip(artifacts, folders, strict=True)
    ]


def _torch_sources(artifact: Artifact, name: str, runtimes: Sequence[str]) -> Iterator[Source]:
    tracking = artifact.manifest.tracking
    keys = ("fp32", "fp32" + TEMPLATE_SUFFIX) if tracking is not None and tracking.form == "cached" else ("fp32",)
    state = _torch_state(artifact)
    for key, runtime in itertools.product(keys, TORCH):
        if runtime in runtimes:
            yield Source(artifact, name, key, runtime, *state)


def _torch_state(artifact: Artifact) -> tuple[str, str]:
    source = artifact.manifest.source
    if not source.get("timm"):
        run = run_folder(artifact)
        if run is None:
            return "skipped", "the manifest names no PyTorch run"
        if not run.is_dir():
            return "skipped", f"the run {source['run']} is not on this machine"
    if importlib.util.find_spec("torch") is None:
        return "absent", f"torch is not installed: {INSTALL['torch']}"
    return "", ""


def _file_sources(artifact: Artifact, name: str, runtimes: Sequence[str], files: Sequence[str]) -> Iterator[Source]:
    for key, entry in artifact.manifest.files.items():
        if files and not any(fnmatchcase(key, pattern) for pattern in files):
            continue
        readers = READERS[entry.format]
        readers += (THROUGHPUT,) if "openvino" in readers else ()
        for runtime in (runtime for runtime in RUNTIMES if runtime in readers and runtime in runtimes):
            reason = missing("openvino" if runtime == THROUGHPUT else runtime)
            yield Source(artifact, name, key, runtime, *(("absent", reason) if reason else ()))


def _size_bytes(source: Source) -> int | None:
    if source.runtime not in TORCH:
        return source.artifact.size_bytes(source.key)
    run = run_folder(source.artifact)
    weights = run / "model" / "model.safetensors" if run else None
    return weights.stat().st_size if weights and weights.is_file() else None


@functools.cache
def _gflop(artifact: Artifact, graph: str) -> float | None:
    """10⁹ operations of one image: of the manifest, else counted where the onnx package is."""
    key = "onnx-fp32" + graph
    if key in artifact.manifest.gflop:
        return artifact.manifest.gflop[key]
    if key not in artifact.manifest.files or importlib.util.find_spec("onnx") is None:
        return None
    from edgemim.export.arithmetic import count_gflop

    return count_gflop(artifact.file(key)) or None
