"""A segmentation report in run.json, on the terminal and as pictures: per-class table, confusion, overlays."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from edgemim.edge.overlay import overlay, paint, plot_masks
from edgemim.edge.report import plot_confusion, save_figure
from edgemim.run import RunRecord
from edgemim.tasks.pixel_counts import SegmentationReport

_SHOWN = 6
_WIDEST = 512
_LISTED = 30


class Gallery:
    """Keeps a few of the images that pass by, evenly spread: image, mask and prediction."""

    def __init__(self, images: int) -> None:
        self._chosen = {int(place) for place in np.linspace(0, images - 1, min(_SHOWN, images)).round()}
        self._passed = 0
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, image: np.ndarray, mask: np.ndarray, predicted: np.ndarray) -> None:
        """One image uint8 [h, w, 3] and two uint8 [h, w] of classes; kept reduced to at most 512 pixels a side."""
        if self._passed in self._chosen:
            step = -(-max(mask.shape) // _WIDEST)
            self.rows.append((image[::step, ::step], mask[::step, ::step], predicted[::step, ::step]))
        self._passed += 1


def write_report(record: RunRecord, report: SegmentationReport, gallery: Gallery) -> None:
    """Put the figures into the record, overlays and confusion matrix into pictures."""
    figures = report.as_dict()
    record.results["evaluated_images"] = figures.pop("images")
    record.results.update(figures)
    record.results["confusion"] = report.confusion.tolist()
    labels, pictures = tuple(report.iou), record.folder / "pictures"
    share = np.round(100 * report.confusion / np.maximum(report.confusion.sum(1, keepdims=True), 1)).astype(int)
    save_figure(plot_confusion(share, labels), pictures / "confusion.png")
    classes = len(labels)
    rows = [
        (image, paint(mask, classes), paint(predicted, classes), overlay(image, predicted, classes))
        for image, mask, predicted in gallery.rows
    ]
    if rows:
        columns = ("image", "mask (white: no class)", "prediction", "prediction over the image")
        save_figure(plot_masks(rows, columns, labels), pictures / "overlays.png")


def show_report(report: SegmentationReport) -> None:
    """Print the per-class table, the least IoU first."""
    table = Table(title=f"{report.images} images")
    for column in ("class", "IoU %", "accuracy %", "share of pixels %"):
        table.add_column(column, justify="left" if column == "class" else "right")
    ranked = sorted(report.iou, key=lambda label: (report.iou[label] is None, report.iou[label] or 0.0))
    for label in ranked[:_LISTED]:
        cells = (report.iou[label], report.accuracy[label], report.share[label])
        name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in label).replace("[", r"\[")
        table.add_row(name, *("–" if cell is None else f"{cell:.1f}" for cell in cells))
    if len(ranked) > _LISTED:
        table.add_row(f"({len(ranked) - _LISTED} better classes)", "", "", "")
    table.add_row("mean", f"{report.miou:.2f}", f"{report.mean_accuracy:.2f}", "", style="bold")
    Console().print(table)
    print(f"mIoU {report.miou:.2f} %, pixel accuracy {report.pixel_accuracy:.2f} %")
    for path, reason in report.skipped[:10]:
        print(f"skipped {path}: {reason}")
