"""`edgemim benchmark`: latency, throughput, size and memory of artifacts on the runtimes of this machine."""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from rich.progress import Progress

from edgemim.commands.benchmark_compare import compare_benchmarks
from edgemim.commands.benchmark_rows import best_ratios, group_rows, warn_of_noise
from edgemim.commands.benchmark_sources import RUNTIMES, find_cases, find_sources, peer_artifacts
from edgemim.config import Config
from edgemim.edge.artifact import Artifact
from edgemim.edge.conditions import read_conditions, shared_drift, slowdowns
from edgemim.edge.isolated import measure_isolated
from edgemim.edge.latency_table import print_table, save_picture
from edgemim.edge.machine import describe
from edgemim.edge.roofline import Roofline, measure_roofline
from edgemim.errors import EdgemimError, UserError
from edgemim.run import RunRecord, find_run, prepare_folder, write_text

_Runtime = Literal[
    "all",
    "pytorch",
    "pytorch-compiled",
    "onnxruntime",
    "openvino",
    "openvino-throughput",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "tensorrt",
]


class BenchmarkConfig(Config):
    """Time every model file of the artifacts on every runtime that reads it, side by side.

    Each case runs in a process of its own; the cases of one batch size and thread count take turns in short blocks,
    so that their ratios hold on a busy machine. PyTorch is measured too where it is installed and the manifest names
    a run that is still here.
    """

    artifacts: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders that `edgemim export` wrote; default the newest."""
    peers: tuple[str, ...] = ()
    """Networks of timm to measure beside, by name, untrained: mobilenetv3_large_100, fastvit_t8, ..."""
    files: tuple[str, ...] = ()
    """Measure only these model files, by key or pattern (openvino-*); default all. PyTorch and peers do not count."""
    batch: tuple[int, ...] = (1, 8)
    """Images at once, each measured apart."""
    threads: tuple[int, ...] = (1, 0)
    """CPU threads to compute with, each measured apart; 0 is all usable CPUs."""
    seconds: float = pydantic.Field(default=2.0, gt=0)
    """Least time for each case, over all blocks, after warm-up."""
    runs: int = pydantic.Field(default=0, ge=0)
    """Least number of runs for each case, over all blocks."""
    blocks: int = pydantic.Field(default=5, ge=5)
    """Blocks that each case's time is split into; more make the intervals narrower."""
    runtimes: tuple[_Runtime, ...] = ("pytorch", "onnxruntime", "openvino")
    """Runtimes to measure, or all. pytorch-compiled compiles each case for tens of seconds; openvino-throughput keeps
    several images in flight; onnxruntime-cuda, onnxruntime-tensorrt and tensorrt need a GPU."""
    out: Path | None = None
    """Where benchmark.json, benchmark.html, latency.png, run.json and peers/ go; default ARTIFACT/benchmark."""
    overwrite: bool = False
    """Empty the folder given by --out first."""
    compare: tuple[Path, ...] = ()
    """Measure nothing: two benchmarks, before and after; exits with 3 if a case became slower by more than --bound."""
    bound: float = pydantic.Field(default=5.0, ge=0)
    """By so many percent a case may have become slower."""


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure artifacts; returns the content of benchmark.json, or with --compare the changes.

    Raises UserError, or with --compare GateRefused.
    """
    if config.compare:
        if config.artifacts or config.peers or len(config.compare) != 2:
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
        result = _measure(config, artifacts, out)
        rows = result["rows"]
        write_text(out / "benchmark.json", json.dumps(result, indent=2) + "\n")
        record.results.update(rows=rows, disturbed=result["disturbed"], artifacts=[str(folder) for folder in folders])
        print_table(result)
        warn_of_noise(record, rows, result["notes"])
        _save_pictures(result, out)
        if not any(row["status"] == "ok" for row in rows):
            raise UserError("nothing could be measured; the table above says why")
    print(f"figures in {out / 'benchmark.json'}, page in {out / 'benchmark.html'}, picture in {out / 'latency.png'}")
    following = (
        f"track VIDEO --artifact {folders[0]}" if artifacts[0].manifest.tracking else f"predict {folders[0]} IMAGE..."
    )
    print(f"next: edgemim {following}")
    return result


def _measure(config: BenchmarkConfig, artifacts: list[Artifact], out: Path) -> dict[str, Any]:
    """The content of benchmark.json."""
    runtimes = RUNTIMES if "all" in config.runtimes else config.runtimes
    sources = find_sources(artifacts, runtimes, config.files)
    find_cases(sources, config.batch, config.threads)  # a mistake is told before peers are built
    peers, rows = peer_artifacts(config.peers, out / "peers", runtimes)
    sources += find_sources(peers, runtimes, ())
    cases, unfit = find_cases(sources, config.batch, config.threads)
    rows += unfit
    rooflines = {threads: _roofline(threads) for threads in dict.fromkeys(case.threads for case in cases)}
    best: list[dict[str, Any]] = []
    before = read_conditions()
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=len(cases) * (config.blocks + 1))
        for (batch, threads), group in itertools.groupby(cases, key=lambda case: (case.batch, case.threads)):
            progress.update(task, description=f"batch {batch}, {threads} threads")
            members = list(group)
            results = measure_isolated(
                {case: case.open for case in members},
                seconds=config.seconds,
                runs=config.runs,
                blocks=config.blocks,
                on_block=lambda: progress.advance(task),
            )
            rows += group_rows(members, results, rooflines[threads])
            best += best_ratios(members, results)
    after = read_conditions()
    drift = shared_drift(rows)
    return {
        "machine": describe(),
        "command": command_line(config),
        "disturbed": any(row.get("disturbed") for row in rows),
        "notes": [*slowdowns(before, after), *([drift] if drift else [])],
        "conditions": {"before": before.as_dict(), "after": after.as_dict()},
        "rooflines": [asdict(roofline) for roofline in rooflines.values() if roofline],
        "int8_over_best_fp32": best,
        "rows": rows,
    }


def command_line(config: Config, verb: str = "benchmark") -> str:
    """The command that gives this configuration: what differs from the defaults."""
    words: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value == field.default or name == "artifacts":
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(["edgemim", verb, *map(str, getattr(config, "artifacts", ())), *words])


def _roofline(threads: int) -> Roofline | None:
    try:
        return measure_roofline(threads)
    except EdgemimError:  # no library to measure it with: there are no shares then
        return None


def _save_pictures(result: dict[str, Any], out: Path) -> None:
    # Not at the top: it brings matplotlib, which what only measures or compares need not load.
    from edgemim.edge.latency_page import write_page

    save_picture(result["rows"], out / "latency.png")
    write_page(result, out / "benchmark.html")
