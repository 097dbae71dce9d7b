"""Rows of `edgemim benchmark` from what was timed: intervals, ratios to PyTorch, shares of the roofline, known accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgemim.commands.benchmark_cases import EAGER, THROUGHPUT, TORCH
from edgemim.commands.benchmark_sources import Case
from edgemim.edge.artifact import Manifest
from edgemim.edge.benchmark import Ratio, ratio_with_interval
from edgemim.edge.isolated import CaseFailed, IsolatedResult
from edgemim.edge.latency_table import row_name
from edgemim.edge.roofline import Roofline
from edgemim.edge.runtime.available import ON_GPU
from edgemim.run import RunRecord

# An idle pool may spin a little after each run; more than this says that a runtime ignored its thread count.
_EXTRA_CPUS = 0.3
_LATENCIES = ("p50", "p50_low", "p50_high", "p90", "p99", "mean", "min")

Results = Mapping[Case, IsolatedResult | CaseFailed]


def group_rows(cases: Sequence[Case], results: Results, roofline: Roofline | None) -> list[dict[str, Any]]:
    """Rows of cases of one batch size and thread count that were measured together."""
    return [_row(case, results, roofline) for case in cases]


def best_ratios(cases: Sequence[Case], results: Results) -> list[dict[str, Any]]:
    """For each network: its fastest INT8 file beside its fastest FP32 form on a runtime, and how many times faster."""
    groups: dict[tuple[str, str], dict[str, list[tuple[Case, IsolatedResult]]]] = {}
    for case in cases:
        result = results[case]
        if isinstance(result, IsolatedResult) and case.source.runtime not in (*TORCH, THROUGHPUT):
            forms = groups.setdefault((case.source.model, case.source.graph), {})
            forms.setdefault(result.facts["precision"], []).append((case, result))
    found = []
    for (model, graph), forms in groups.items():
        if "fp32" in forms and "int8" in forms:
            (fp32, slow), (int8, fast) = (min(forms[name], key=_median) for name in ("fp32", "int8"))
            names = {"fp32": _name(fp32), "int8": _name(int8)}
            where = {"model": model + graph.replace("-", " "), "batch": int8.batch, "threads": int8.threads}
            found.append({**where, **names, **_ratio_facts(ratio_with_interval(slow.timing, fast.timing))})
    return found


def warn_of_noise(record: RunRecord, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> None:
    """Say what makes the figures less than they seem."""
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
    for note in notes:
        record.warn(note)


def _row(case: Case, results: Results, roofline: Roofline | None) -> dict[str, Any]:
    result = results[case]
    if isinstance(result, CaseFailed):
        return case.row(status="absent" if result.absent else "failed", reason=str(result))
    base = _baseline(case, results)
    base_result = results[base]
    assert isinstance(base_result, IsolatedResult)
    images = result.facts["images_per_call"]
    ratio = ratio_with_interval(base_result.timing, result.timing).times(images / base_result.facts["images_per_call"])
    row = case.row(
        status="ok",
        precision=result.facts["precision"],
        **result.timing.summary(images),
        cold_start_s=result.cold_start_s,
        memory_peak_mib=result.memory_peak_mib,
        memory_added_mib=result.memory_added_mib,
        baseline=_name(base),
        **_ratio_facts(ratio),
        **_accuracy(case.source.artifact.manifest, case.source.key, case.source.runtime),
        **{name: result.facts[name] for name in ("streams", "requests") if name in result.facts},
    )
    if case.source.runtime == THROUGHPUT:  # a call is a wave of runs that wait for each other: no latency of an image
        row |= {f"latency_{name}_ms": None for name in _LATENCIES}
    row["roofline_share"] = _share(row, result.timing.percentile_ms(50) / images, roofline)
    return row


def _baseline(case: Case, results: Results) -> Case:
    """Eager PyTorch of the same graph, else its first file that was timed."""
    same = [
        other
        for other, found in results.items()
        if isinstance(found, IsolatedResult)
        and (other.source.artifact, other.source.graph) == (case.source.artifact, case.source.graph)
    ]
    return next((other for other in same if other.source.runtime == EAGER), same[0])


def _ratio_facts(ratio: Ratio) -> dict[str, Any]:
    return {
        "speedup": ratio.middle,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "speedup_disturbed": ratio.disturbed,
    }


def _share(row: Mapping[str, Any], ms_per_image: float, roofline: Roofline | None) -> float | None:
    """Part of the measured peak that was used: the 8-bit one for INT8 files, though their attention may be in float."""
    if roofline is None or not row["gflop"] or row["runtime"] in ON_GPU:
        return None
    return roofline.share(row["gflop"], ms_per_image, row["precision"])


def _accuracy(manifest: Manifest, key: str, runtime: str) -> dict[str, Any]:
    """What the manifest's reports say of a file; FP32 on whatever runtime has the score that they compare with."""
    if report := manifest.quantization.get(key):
        scores = {name: value for name, value in report.items() if name.startswith("score_") and name != "score_fp32"}
        score = next(iter(scores.values()), None)
        found = {"metric": report.get("metric"), "score": score, "agreement": report.get("agreement")}
        return {**found, "score_images": report.get("labelled")}
    fp32 = runtime in TORCH or (key in manifest.files and manifest.files[key].precision == "fp32")
    if fp32 and not key.endswith("-template"):
        for report in manifest.quantization.values():
            if report.get("score_fp32") is not None:
                shared = {"metric": report.get("metric"), "score": report["score_fp32"], "agreement": 100.0}
                return {**shared, "score_images": report.get("labelled")}
    return {}


def _median(timed: tuple[Case, IsolatedResult]) -> float:
    return timed[1].timing.percentile_ms(50)


def _name(case: Case) -> str:
    return f"{case.source.key} on {case.source.runtime}"
