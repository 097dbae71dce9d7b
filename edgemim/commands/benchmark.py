"""`edgemim benchmark`: latency, throughput, size and memory of artifacts on the runtimes of this machine."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import tyro
from rich.progress import Progress

from edgemim.commands.benchmark_compare import compare_benchmarks
from edgemim.config import Config
from edgemim.edge.artifact import Artifact
from edgemim.edge.benchmark import paired_ratio
from edgemim.edge.isolated import CaseFailed, IsolatedCase, IsolatedResult, measure_isolated
from edgemim.edge.latency_table import print_table, row_name, save_picture
from edgemim.edge.machine import INSTALL, describe, runtime_version, usable_cpus
from edgemim.edge.runtime import READERS, Session, open_session
from edgemim.edge.tracking.tracker import example_inputs
from edgemim.errors import UserError
from edgemim.run import RunRecord, find_run, prepare_folder, write_text

_MIB = 2**20
# An idle pool may spin a little after each run; more than this says that a runtime ignored its thread count.
_EXTRA_CPUS = 0.3


class BenchmarkConfig(Config):
    """Time every model file of the artifacts on every runtime that reads it, side by side.

    Each case runs in a process of its own; the cases of one batch size and thread count take turns in short blocks,
    so that their ratios hold on a busy machine. PyTorch is measured too where it is installed and the manifest names
    a run that is still here.
    """

    artifacts: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders that `edgemim export` wrote; default the newest."""
    batch: int = pydantic.Field(default=8, ge=1)
    """Second batch size, besides 1."""
    threads: tuple[int, ...] = (1, 0)
    """CPU threads to compute with; 0 is all usable CPUs."""
    seconds: float = pydantic.Field(default=2.0, gt=0)
    """Least time for each case, over all blocks, after warm-up."""
    runs: int = pydantic.Field(default=0, ge=0)
    """Least number of runs for each case, over all blocks."""
    blocks: int = pydantic.Field(default=5, ge=5)
    """Blocks that each case's time is split into."""
    runtimes: tuple[Literal["pytorch", "onnxruntime", "openvino"], ...] = ("pytorch", "onnxruntime", "openvino")
    """Runtimes to measure."""
    out: Path | None = None
    """Where benchmark.json, latency.png and run.json go; default ARTIFACT/benchmark."""
    overwrite: bool = False
    """Empty the folder given by --out first."""
    compare: tuple[Path, ...] = ()
    """Measure nothing: two benchmarks, before and after; exits with 3 if a case became slower by more than --bound."""
    bound: float = pydantic.Field(default=5.0, ge=0)
    """By so many percent a case may have become slower."""


@dataclass(frozen=True)
class _Case:
    artifact: Artifact
    key: str
    runtime: str
    batch: int
    threads: int

    def row(self, **more: Any) -> dict[str, Any]:
        return {**_row(self.artifact, self.key, self.runtime), "batch": self.batch, "threads": self.threads, **more}

    def open(self) -> IsolatedCase:
        arguments = {
            "folder": str(self.artifact.folder),
            "key": self.key,
            "runtime": self.runtime,
            "batch": self.batch,
            "threads": self.threads,
        }
        return IsolatedCase("edgemim.commands.benchmark:open_case", arguments, threads=self.threads)


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure artifacts; returns the content of benchmark.json, or with --compare the changes.

    Raises UserError, or with --compare GateRefused.
    """
    if config.compare:
        if config.artifacts or len(config.compare) != 2:
            raise UserError(
                "--compare takes two benchmarks, before and after, and measures nothing; leave the artifacts out"
            )
        return compare_benchmarks(*config.compare, config.bound)
    if config.bound != BenchmarkConfig.model_fields["bound"].default:
        raise UserError("--bound would have no effect without --compare; add --compare BEFORE AFTER or leave it out")
    folders = config.artifacts or (find_run(None, "export"),)
    artifacts = [Artifact.open(folder) for folder in folders]
    out = config.out or folders[0] / "benchmark"
    prepare_folder(out, overwrite=config.overwrite, resume=config.out is None)
    with RunRecord("benchmark", out, config) as record:
        rows: list[dict[str, Any]] = []
        sources = [source for artifact in artifacts for source in _sources(artifact, config)]
        cases = _cases(artifacts, config, sources, rows)
        with Progress(transient=True) as progress:
            task = progress.add_task("measuring", total=len(cases) * (config.blocks + 1))
            groups = itertools.groupby(cases, key=lambda case: (case.batch, case.threads))
            for (batch, threads), group in groups:
                progress.update(task, description=f"batch {batch}, {threads} threads")
                members = list(group)
                results = measure_isolated(
                    {case: case.open for case in members},
                    seconds=config.seconds,
                    runs=config.runs,
                    blocks=config.blocks,
                    on_block=lambda: progress.advance(task),
                )
                rows += _group_rows(members, results)
        result = {"machine": describe(), "disturbed": any(row.get("disturbed") for row in rows), "rows": rows}
        write_text(out / "benchmark.json", json.dumps(result, indent=2) + "\n")
        save_picture(rows, out / "latency.png")
        record.results.update(rows=rows, disturbed=result["disturbed"], artifacts=[str(folder) for folder in folders])
        print_table(result)
        _warn(record, rows)
        if not any(row["status"] == "ok" for row in rows):
            raise UserError("nothing could be measured; the table above says why")
    print(f"figures in {out / 'benchmark.json'}, picture in {out / 'latency.png'}")
    following = (
        f"track VIDEO --artifact {folders[0]}" if artifacts[0].manifest.tracking else f"predict {folders[0]} IMAGE..."
    )
    print(f"next: edgemim {following}")
    return result


def open_case(
    folder: str, key: str, runtime: str, batch: int, threads: int
) -> tuple[Callable[[], object], dict[str, Any]]:
    """In the child: open one case and return the call to time. Raises EdgemimError."""
    artifact = Artifact.open(folder, verify=False)  # the parent has verified it a moment ago
    if runtime == "pytorch":
        # The only way to torch: the bridge, asked for when it is installed.
        from edgemim.export.torch_session import open_torch_session

        size = artifact.manifest.preprocessing.image_size
        session: Session = open_torch_session(_run_folder(artifact), threads, image_size=size)
    else:
        session = open_session(artifact, key, runtime=runtime, threads=threads)
    manifest = artifact.manifest
    size = manifest.preprocessing.image_size
    shape = (batch, *(side or size for side in manifest.input_shape[1:]))
    if manifest.tracking is not None:
        inputs = example_inputs(artifact, key, runtime=runtime, threads=threads)
        return lambda: session.run(inputs), {"precision": session.precision}
    inputs = {manifest.input_name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    return lambda: session.run(inputs), {"precision": session.precision}


def _sources(artifact: Artifact, config: BenchmarkConfig) -> Iterator[tuple[Artifact, str, str, str, str]]:
    """Everything that could be measured: (artifact, key, runtime, status, reason)."""
    if "pytorch" in config.runtimes:
        yield artifact, "fp32", "pytorch", *_pytorch_state(artifact)
    for key, entry in artifact.manifest.files.items():
        for runtime in READERS[entry.format]:
            if runtime not in config.runtimes:
                continue
            if importlib.util.find_spec(runtime) is None:
                yield artifact, key, runtime, "absent", f"{runtime} is not installed: {INSTALL[runtime]}"
            else:
                yield artifact, key, runtime, "", ""


def _pytorch_state(artifact: Artifact) -> tuple[str, str]:
    if not artifact.manifest.source.get("run"):
        return "skipped", "the manifest names no PyTorch run"
    if artifact.manifest.tracking is not None:
        return "skipped", "of trackers the files are measured"
    if not _run_folder(artifact).is_dir():
        return "skipped", f"the run {artifact.manifest.source['run']} is not on this machine"
    if importlib.util.find_spec("torch") is None:
        return "absent", f"torch is not installed: {INSTALL['torch']}"
    return "", ""


def _run_folder(artifact: Artifact) -> Path:
    run = Path(str(artifact.manifest.source["run"]))
    return run if run.is_dir() else artifact.folder / run


def _cases(
    artifacts: list[Artifact], config: BenchmarkConfig, sources: list[Any], rows: list[dict[str, Any]]
) -> list[_Case]:
    """The cases, those of one batch size and thread count together; what cannot run becomes a row at once."""
    for artifact, key, runtime, status, reason in sources:
        if status:
            rows.append({**_row(artifact, key, runtime), "status": status, "reason": reason})
    batches = sorted({1, config.batch})
    fixed = {str(artifact.folder): artifact.manifest.input_shape[0] for artifact in artifacts}
    cases = []
    for batch, threads in itertools.product(batches, dict.fromkeys(count or usable_cpus() for count in config.threads)):
        if threads < 1:
            raise UserError(f"threads is {threads}; give 0 for all usable CPUs, or positive numbers")
        for artifact, key, runtime, status, _ in sources:
            case = _Case(artifact, key, runtime, batch, threads)
            if status:
                continue
            if fixed[str(artifact.folder)] in (None, batch):
                cases.append(case)
            else:
                rows.append(case.row(status="skipped", reason=f"made for batch {fixed[str(artifact.folder)]} only"))
    return cases


def _group_rows(cases: list[_Case], results: Mapping[_Case, IsolatedResult | CaseFailed]) -> list[dict[str, Any]]:
    """Rows of cases that were measured together; speed-ups refer to PyTorch of the same artifact, else its first file."""
    rows = []
    for case in cases:
        result = results[case]
        if isinstance(result, CaseFailed):
            rows.append(case.row(status="absent" if result.absent else "failed", reason=str(result)))
            continue
        same = {other: found for other, found in results.items() if other.artifact is case.artifact}
        base, base_result = next((other, found) for other, found in same.items() if isinstance(found, IsolatedResult))
        speedup, unsure = paired_ratio(base_result.timing, result.timing)
        rows.append(
            case.row(
                status="ok",
                precision=result.facts["precision"],
                **result.timing.summary(case.batch),
                memory_peak_mib=result.memory_peak_mib,
                memory_added_mib=result.memory_added_mib,
                baseline=f"{base.key} on {base.runtime}",
                speedup=speedup,
                speedup_disturbed=unsure,
            )
        )
    return rows


def _row(artifact: Artifact, key: str, runtime: str) -> dict[str, Any]:
    if runtime == "pytorch":
        weights = _run_folder(artifact) / "model" / "model.safetensors" if artifact.manifest.source.get("run") else None
        size = weights.stat().st_size if weights and weights.is_file() else None
    else:
        size = artifact.size_bytes(key)
    return {
        "artifact": str(artifact.folder),
        "model": artifact.manifest.name,
        "file": key,
        "runtime": runtime,
        "version": runtime_version("torch" if runtime == "pytorch" else runtime),
        "model_size_mib": size / _MIB if size else None,
    }


def _warn(record: RunRecord, rows: list[dict[str, Any]]) -> None:
    measured = [row for row in rows if row["status"] == "ok"]
    disturbed = [row for row in measured if row["disturbed"]]
    if disturbed:
        worst = max(row["foreign_load"] for row in disturbed)
        record.warn(
            f"disturbed run: in {len(disturbed)} of {len(measured)} cases other processes took over 10 % of the CPUs "
            f"(up to {worst:.0%}); ratios hold better than times; repeat on a quiet machine"
        )
    for row in measured:
        if row["cpus_used"] > row["threads"] + _EXTRA_CPUS:
            record.warn(f"{row_name(row)} kept {row['cpus_used']:.1f} CPUs busy, asked to use {row['threads']}")
