"""`edgemim quantize`: INT8 files join an artifact if they are as good as FP32 and faster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from edgemim.edge.artifact import Artifact
from edgemim.errors import GateRefused, UserError
from edgemim.export.quantization_aware import AwareConfig
from edgemim.export.quantize import Int8Config, Verdict, quantize_artifact
from edgemim.export.quantize_report import PICTURE, REPORT, int8_files, judge_again, report_table, write_report
from edgemim.export.tracking_int8 import TRACKER_MAKER
from edgemim.export.tuned_int8 import check_aware, told_of_tuning, tune_and_judge
from edgemim.run import FolderLock, RunRecord, find_run
from edgemim.tasks import TrackingTask, load_task


class QuantizeConfig(Int8Config):
    """Quantise an artifact to INT8, judge each file against FP32 on real images, keep what is as good and faster."""

    artifact: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder that `edgemim export` wrote; default the newest."""
    run: Path | None = None
    """Fine-tuning run that it came from, if it is no longer where the manifest says."""
    aware: AwareConfig = AwareConfig()
    """Fine-tuning for INT8 that misses the gate in quality; off unless --aware.epochs is given."""
    overwrite: bool = False
    """Make INT8 files again that are there already."""
    report: bool = False
    """Write quantize/report.json and report.png beside the table. Where the artifact has INT8 files, and neither
    --targets nor --overwrite is given, these are judged again on this machine and nothing is changed."""


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Quantise an artifact; returns what stands in ARTIFACT/quantize/run.json under 'results'.

    Raises:
        GateRefused: an INT8 file is worse or slower; it is not kept (judged again: it stays, and so does all else).
        UserError, MissingLibrary, ModelRefused: see `edgemim.export.quantize.quantize_artifact`.
    """
    folder = find_run(config.artifact, "export")
    artifact = Artifact.open(folder)
    task = load_task(_run_folder(artifact, config), data=config.data, val=config.val)
    task = task.at_size(artifact.manifest.preprocessing.image_size)
    check_aware(task, config.aware)
    maker = TRACKER_MAKER if isinstance(task, TrackingTask) else None
    again = config.report and not config.targets and not config.overwrite and bool(int8_files(artifact))
    place = folder / "quantize"
    lock = FolderLock(place)
    try:
        with RunRecord("quantize", place / "again" if again else place, config) as record:
            with Console(stderr=True).status("quantising and judging INT8 against FP32"):
                if again:
                    verdicts = judge_again(artifact, task, config, maker)
                else:
                    verdicts = quantize_artifact(artifact, task, config, overwrite=config.overwrite, maker=maker)
            if not again:  # outside the spinner: it has a progress line of its own
                verdicts = tune_and_judge(artifact, task, config, config.aware, verdicts, place / "aware")
            record.results["quantization"] = {verdict.key: verdict.report for verdict in verdicts}
            record.results["outcomes"] = {verdict.key: verdict.outcome for verdict in verdicts}
            _show(verdicts)
            if config.report:
                write_report(place, artifact.manifest.name, record.results["quantization"])
            _warn(verdicts, record)
            _refuse(verdicts, folder, again=again)
    finally:
        lock.release()
    reported = f"report in {place / REPORT} and {PICTURE}; " if config.report else ""
    print(f"INT8 in {folder}; {reported}next: edgemim benchmark {folder}")
    return record.results


def _run_folder(artifact: Artifact, config: QuantizeConfig) -> Path:
    if config.run is not None:
        return find_run(config.run, "finetune")
    run = artifact.manifest.source.get("run")
    if not run or not Path(run).is_dir():
        state = f"its run {run} is not here" if run else "its manifest names no run"
        raise UserError(f"{artifact.folder}: {state}, so there are no images to judge on; give --run RUN")
    return Path(run)


def _refuse(verdicts: Sequence[Verdict], folder: Path, *, again: bool) -> None:
    """Raises GateRefused if any target was refused; the sentence says what was kept and why the rest was not."""
    refused = [verdict for verdict in verdicts if verdict.outcome == "refused"]
    if not refused:
        return
    kept = ["onnx-fp32", *(verdict.key for verdict in verdicts if verdict.outcome != "refused")]
    images = refused[0].report["images"]
    why = "; ".join(f"{verdict.key}: {', '.join(verdict.reasons)}" for verdict in refused)
    if again:
        raise GateRefused(
            f"INT8 judged again on {images} images and refused: {why}. The files stay in {folder} as they were; "
            "--overwrite makes them again"
        )
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
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(report_table(verdicts))
    for verdict in verdicts:
        if aware := verdict.report.get("aware"):
            print(f"{verdict.key}: {told_of_tuning(aware, verdict.report)}")
        if searched := verdict.report.get("search"):
            before = searched["all_int8"]
            told = (
                f"{len(verdict.report['float_layers'])} layers of {', '.join(verdict.report['float_blocks'])} in float mend it"
                if searched["found"]
                else "half of its blocks in float do not mend it"
            )
            print(
                f"{verdict.key}: all in INT8 misses the gate (agreement {before['agreement']:.2f} %, cosine "
                f"{before['cosine']:.5f}); {told}, after {searched['forms_tried']} forms"
            )
