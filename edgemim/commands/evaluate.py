"""`edgemim evaluate`: accuracy and confusion matrix of a fine-tuned run, of images or of their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from rich.console import Console
from rich.table import Table

from edgemim.analysis.accuracy import AccuracyReport, evaluate_classifier
from edgemim.commands.finetune import write_accuracy
from edgemim.commands.segmentation.evaluate import evaluate_run
from edgemim.config import Config
from edgemim.data.loader import eval_loader
from edgemim.errors import UserError
from edgemim.run import RunRecord, find_run
from edgemim.tasks import ClassificationTask, SegmentationTask, load_task
from edgemim.training.distributed import pick_device


class EvaluateConfig(Config):
    """Measure a fine-tuned run on its held-out images, or on other ones."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a fine-tuning run; default the newest."""
    data: Path | None = None
    """Images in one folder a class, or a folder with train/ and val/ of such; a CSV file, tar shards, a Hugging Face
    dataset (of a segmentation set, its root, or a folder with images/ and masks/); default the run's own held-out images."""
    out: Path | None = None
    """Where run.json and the confusion matrix go; default RUN/evaluate."""
    batch_size: int = pydantic.Field(default=64, ge=1)
    """Images at once."""
    workers: int = pydantic.Field(default=0, ge=0)
    """Processes that read images."""
    device: str = "auto"
    """auto, cpu or cuda."""
    mode: Literal["slide", "whole"] | None = None
    """Segmentation: windows over the image, or the whole squeezed into one; default as trained."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a run; returns what stands in run.json under 'results'. Raises UserError."""
    run = find_run(config.run, "finetune")
    device = pick_device(config.device)
    task = load_task(run)
    if isinstance(task, SegmentationTask):
        return evaluate_run(run, task, config.data, config.mode, config.out or run / "evaluate", config, device)
    if config.mode is not None:
        raise UserError(f"--mode is for segmentation, {run} holds a classifier; leave it out")
    assert isinstance(task, ClassificationTask)
    folder = task.held_out(config.data)
    task.to(device)
    with RunRecord("evaluate", config.out or run / "evaluate", config) as record:
        loader = eval_loader(folder, task.preprocessing, batch_size=config.batch_size, workers=config.workers)
        report = evaluate_classifier(task, loader, device)
        record.results["run"] = str(run)
        write_accuracy(record, report, task.labels)
    _show(report)
    print(f"confusion matrix in {record.folder}/pictures; next: edgemim export {run} --onnx --int8")
    return record.results


def _show(report: AccuracyReport) -> None:
    table = Table(title=f"{report.images} images")
    for column in ("class", "top-1 %"):
        table.add_column(column, justify="right")
    worst = sorted(report.per_class.items(), key=lambda item: item[1])
    for label, accuracy in worst[:20]:
        table.add_row(repr(label)[1:-1].replace("[", r"\["), f"{accuracy:.1f}")
    if len(worst) > 20:
        table.add_row(f"({len(worst) - 20} better classes)", "")
    table.add_row("all", f"{report.top1:.2f}", style="bold")
    Console().print(table)
    print(", ".join(f"{name.replace('top', 'top-')} {value:.2f} %" for name, value in report.tops.items()))
    for path, reason in report.skipped[:10]:
        print(f"skipped {path}: {reason}")
