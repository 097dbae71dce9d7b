"""`edgemim quantize`: INT8 files join an artifact if they are as good as FP32 and faster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from edgemim.edge.artifact import Artifact
from edgemim.errors import GateRefused, UserError
from edgemim.export.quantize import Int8Config, Verdict, quantize_artifact
from edgemim.export.tracking_int8 import TRACKER_MAKER
from edgemim.run import FolderLock, RunRecord, find_run
from edgemim.tasks import TrackingTask, load_task


class QuantizeConfig(Int8Config):
    """Quantise an artifact to INT8, judge each file against FP32 on real images, keep what is as good and faster."""

    artifact: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder that `edgemim export` wrote; default the newest."""
    run: Path | None = None
    """Fine-tuning run that it came from, if it is no longer where the manifest says."""
    overwrite: bool = False
    """Make INT8 files again that are there already."""


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Quantise an artifact; returns what stands in ARTIFACT/quantize/run.json under 'results'.

    Raises:
        GateRefused: an INT8 file is worse or slower; it is not kept, FP32 and the other files stay as they are.
        UserError, MissingLibrary, ModelRefused: see `edgemim.export.quantize.quantize_artifact`.
    """
    folder = find_run(config.artifact, "export")
    artifact = Artifact.open(folder)
    task = load_task(_run_folder(artifact, config), data=config.data, val=config.val)
    task = task.at_size(artifact.manifest.preprocessing.image_size)
    lock = FolderLock(folder / "quantize")
    try:
        with RunRecord("quantize", folder / "quantize", config) as record:
            with Console(stderr=True).status("quantising and judging INT8 against FP32"):
                maker = TRACKER_MAKER if isinstance(task, TrackingTask) else None
                verdicts = quantize_artifact(artifact, task, config, overwrite=config.overwrite, maker=maker)
            record.results["quantization"] = {verdict.key: verdict.report for verdict in verdicts}
            record.results["outcomes"] = {verdict.key: verdict.outcome for verdict in verdicts}
            _show(verdicts)
            _warn(verdicts, record)
            _refuse(verdicts, folder)
    finally:
        lock.release()
    print(f"INT8 in {folder}; next: edgemim benchmark {folder}")
    return record.results


def _run_folder(artifact: Artifact, config: QuantizeConfig) -> Path:
    if config.run is not None:
        return find_run(config.run, "finetune")
    run = artifact.manifest.source.get("run")
    if not run or not Path(run).is_dir():
        state = f"its run {run} is not here" if run else "its manifest names no run"
        raise UserError(f"{artifact.folder}: {state}, so there are no images to judge on; give --run RUN")
    return Path(run)


def _refuse(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Raises GateRefused if any target was refused; the sentence says what was kept and why the rest was not."""
    refused = [verdict for verdict in verdicts if verdict.outcome == "refused"]
    if not refused:
        return
    kept = ["onnx-fp32", *(verdict.key for verdict in verdicts if verdict.outcome != "refused")]
    images = refused[0].report["images"]
    why = "; ".join(f"{verdict.key}: {', '.join(verdict.reasons)}" for verdict in refused)
    raise GateRefused(
        f"INT8 refused on {images} images: {why}. Kept in {folder}: {', '.join(kept)} (--force overrides)"
    )


def _warn(verdicts: Sequence[Verdict], record: RunRecord) -> None:
    for verdict in verdicts:
        report = verdict.report
        if verdict.outcome == "forced":
            record.warn(f"{verdict.key} kept by --force in spite of: {', '.join(verdict.reasons)}")
        if report["images"] < record.config.model_dump()["images"]:
            record.warn(f"{verdict.key} was judged on {report['images']} images, all there are")
        for speed in report["speeds"]:
            if speed["undecided"]:
                record.warn(
                    f"{verdict.key}: speed with {speed['threads']} threads undecided after {speed['attempts']} attempts "
                    f"({speed['ratio']:.2f} of FP32's time, others took {speed['foreign_load']:.0%} of the CPUs); "
                    "repeat on a quiet machine"
                )


def _show(verdicts: Sequence[Verdict]) -> None:
    table = Table(title="INT8 against FP32 on the same runtime")
    metric, answers = (verdicts[0].report[key] for key in ("metric", "answers"))
    scores = (f"{metric} FP32", f"{metric} INT8", f"equal {answers}")
    for column in ("file", "images", *scores, "cosine", "time ratio", "MiB", "verdict"):
        table.add_column(column, justify="left" if column in ("file", "verdict") else "right")
    for verdict in verdicts:
        report = verdict.report
        ratios = " / ".join(
            f"{speed['ratio']:.2f}{'?' * speed['undecided']} ({speed['threads']} thr.)" for speed in report["speeds"]
        )
        table.add_row(
            verdict.key,
            str(report["images"]),
            _percent(report["score_fp32"]),
            _percent(report["score_int8"]),
            _percent(report["agreement"]),
            f"{report['cosine']:.5f}",
            ratios,
            f"{report['size_bytes'] / 2**20:.2f}",
            verdict.outcome,
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    console.print(table)


def _percent(value: float | None) -> str:
    return "no labels" if value is None else f"{value:.2f} %"
