"""`edgemim evaluate` of a segmentation run: mIoU, pixel accuracy, per-class table, overlays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from edgemim.analysis.segmentation import evaluate_segmenter
from edgemim.commands.segmentation.results import Gallery, show_report, write_report
from edgemim.config import Config
from edgemim.data.segmentation.folder import open_held_out
from edgemim.run import RunRecord
from edgemim.tasks.segmentation import SegmentationTask


def evaluate_run(
    run: Path,
    task: SegmentationTask,
    data: Path | None,
    mode: Literal["slide", "whole"] | None,
    out: Path,
    config: Config,
    device: torch.device,
) -> dict[str, Any]:
    """Measure a run on its held-out images or other ones; returns what stands in OUT/run.json under 'results'.

    Raises:
        UserError: if there are no such images, or a mask is at fault.
    """
    folder = task.held_out_pairs() if data is None else open_held_out(data, task.labels)
    if mode is not None:
        task.inference = task.inference.model_copy(update={"mode": mode})
    task.to(device)
    with RunRecord("evaluate", out, config) as record:
        gallery = Gallery(len(folder))
        report = evaluate_segmenter(task.predict, folder, show=gallery.add)
        record.results.update(run=str(run), mode=task.inference.mode)
        write_report(record, report, gallery)
    show_report(report)
    print(f"overlays in {record.folder}/report.html; next: edgemim export {run} --onnx --int8")
    return record.results
