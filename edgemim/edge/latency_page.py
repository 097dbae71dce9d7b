"""A benchmark as one self-contained HTML page: tables by batch and threads, pictures, noise, machine and command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemim.edge.latency_plots import plot_accuracy, plot_bars_with_intervals, plot_throughput
from edgemim.edge.latency_table import HOW_COUNTED, best_lines, machine_line, roof_lines, row_cells, unmeasured
from edgemim.edge.report import Report

Row = Mapping[str, Any]

_COLUMNS = (
    "file|runtime|p50 ms|95 %|p90 ms|p99 ms|images/s|speed-up|95 %|% of peak|start s|file MiB|peak MiB|others"
).split("|")


def write_page(result: Mapping[str, Any], path: Path) -> Path:
    """Write the content of a benchmark.json as a page."""
    rows = [row for row in result["rows"] if row["status"] == "ok"]
    models = dict.fromkeys(row["model"] for row in rows)
    report = Report("edgemim benchmark", f"{', '.join(models) or 'Nothing'} on {machine_line(result['machine'])}.")
    _in_short(report, result, rows)
    if known := [row for row in rows if row.get("score") is not None and row["latency_p50_ms"] is not None]:
        _accuracy(report, known)
    settings = dict.fromkeys((row["batch"], row["threads"]) for row in rows)
    for batch, threads in settings:
        _setting(report, [row for row in rows if (row["batch"], row["threads"]) == (batch, threads)], batch, threads)
    if sentences := unmeasured(result["rows"]):
        report.section("Not measured")
        for sentence in sentences:
            report.text(sentence)
    _again(report, result, rows)
    return report.save(path)


def _in_short(report: Report, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    report.section("In short")
    disturbed = [row for row in rows if row["disturbed"]]
    if disturbed:
        worst = max(row["foreign_load"] for row in disturbed)
        report.note(
            f"Disturbed: in {len(disturbed)} of {len(rows)} cases other processes took over 10 % of the CPUs (up to "
            f"{worst:.0%}); these are marked with !. Ratios hold better than times; repeat on a quiet machine.",
            "warn",
        )
    for note in result.get("notes", ()):
        report.note(note[:1].upper() + note[1:] + ".", "warn")
    if rows and not disturbed and not result.get("notes"):
        report.note("Nothing else took over 10 % of the CPUs, and no slowing of the machine was seen.", "good")
    for line in best_lines(result):
        report.text(line + ".")
    if fastest := _fastest(rows):
        report.table(
            ["model", "fastest at batch 1", "threads", "p50 ms", "speed-up", "GFLOP", "parameters"],
            fastest,
            "The fastest form of each model where single images are timed; speed-up is over its eager PyTorch.",
        )


def _fastest(rows: Sequence[Row]) -> list[list[object]]:
    single = [row for row in rows if row["batch"] == 1 and row["latency_p50_ms"] is not None]
    found: list[list[object]] = []
    for model in dict.fromkeys(row["model"] for row in single):
        # A cached tracker's template graph runs once a video: the graph of every frame counts.
        own = [row for row in single if row["model"] == model and not row["file"].endswith("-template")]
        if own:
            row = min(own, key=lambda row: row["latency_p50_ms"])
            form = f"{row['file']} on {row['runtime']}"
            ratio = f"{row['speedup']:.2f}×" if row["baseline"].endswith(" on pytorch") else "–"
            gflop = f"{row['gflop']:.2f}" if row.get("gflop") else "–"
            count = f"{row['parameters']:,}" if row.get("parameters") else "–"
            found.append([model, form, row["threads"], f"{row['latency_p50_ms']:.2f}", ratio, gflop, count])
    return found


def _accuracy(report: Report, rows: Sequence[Row]) -> None:
    report.section("Latency against accuracy")
    report.text(
        "Scores are those that the manifest's INT8 report found on held-out images; FP32's is the one it compares with."
    )
    threads = max(row["threads"] for row in rows)
    for metric in dict.fromkeys(row["metric"] for row in rows):
        chosen = [row for row in rows if (row["metric"], row["batch"], row["threads"]) == (metric, 1, threads)]
        if chosen:
            images = max(row.get("score_images") or 0 for row in chosen)
            caption = f"Batch 1, {threads} thread{'s' * (threads > 1)}; {metric} on {images} images."
            report.figure(plot_accuracy(chosen, str(metric)), caption)


def _setting(report: Report, rows: Sequence[Row], batch: int, threads: int) -> None:
    report.section(f"Batch {batch}, {threads} thread{'s' * (threads > 1)}")
    if any(row["latency_p50_ms"] is not None for row in rows):
        report.figure(plot_bars_with_intervals(rows), "Median latency; black lines are 95 % intervals, ! is disturbed.")
    report.figure(
        plot_throughput(rows), "Images a second, one call after the other; openvino-throughput: several at once."
    )
    for model in dict.fromkeys(row["model"] for row in rows):
        own = sorted((row for row in rows if row["model"] == model), key=_time_per_image)
        report.table(_COLUMNS, [_cells(row) for row in own], _caption(model, own))


def _cells(row: Row) -> list[object]:
    size = f"{row['model_size_mib']:.1f}" if row["model_size_mib"] else "–"
    others = f"{row['foreign_load']:.0%}{' !' if row['disturbed'] else ''}"
    return [row["file"], row["runtime"], *row_cells(row)[2:], size, f"{row['memory_peak_mib']:.0f}", others]


def _caption(model: str, rows: Sequence[Row]) -> str:
    gflop = {row["gflop"] for row in rows if row.get("gflop")}
    work = f" {' and '.join(f'{value:.2f}' for value in sorted(gflop))} GFLOP an image." if gflop else ""
    return f"{model}, fastest first.{work} Speed-up: over {', '.join(sorted({row['baseline'] for row in rows}))}; ? is disturbed."


def _again(report: Report, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    report.section("The machine, the command, and what the columns mean")
    report.code(str(result.get("command", "")))
    for line in (machine_line(result["machine"]), *roof_lines(result)):
        report.text(line + ".")
    report.text(
        "Each case ran in a process of its own, all of one batch and thread count in turns, block by block, every second round "
        "backwards. Intervals are by drawing blocks anew (95 %); speed-up is the median ratio of blocks measured one after "
        "the other. Start s: from loading the libraries to the first answer, compilation included, once."
    )
    report.text(HOW_COUNTED[:1].upper() + HOW_COUNTED[1:] + ".")
    versions = dict.fromkeys((row["runtime"], row["version"] or "") for row in rows)
    machine = result["machine"]
    facts = [
        ("CPU", machine["cpu"]),
        ("flags", " ".join(machine.get("cpu_flags", ()))),
        ("system", machine.get("platform")),
    ]
    report.table(["what", "which"], [*facts, *versions], "What measured.")


def _time_per_image(row: Row) -> float:
    return 1 / row["throughput_images_per_s"]
