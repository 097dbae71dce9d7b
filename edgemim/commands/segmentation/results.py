"""A segmentation report in run.json, on the terminal, as pictures and on a page: per-class table, confusion, overlays."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from edgemim.edge.overlay import overlay, paint, plot_masks
from edgemim.edge.report import Report, plot_confusion, save_figure
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
    """Put the figures into the record, overlays and confusion matrix into pictures, all of it on report.html."""
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
    write_page(record, report)


def write_page(record: RunRecord, report: SegmentationReport) -> None:
    """RUN/report.html: one file with the figures, the overlays under their legend and the confusion."""
    lead = (
        f"mIoU {report.miou:.2f} %, pixel accuracy {report.pixel_accuracy:.2f} %, mean accuracy of the classes "
        f"{report.mean_accuracy:.2f} % on {report.images} images."
    )
    page = Report(f"Segmentation: {record.folder.resolve().name}", lead)
    page.section("Overlays")
    overlays = record.folder / "pictures" / "overlays.png"
    if overlays.is_file():
        page.figure(overlays, "Images spread over the set; the colours of the classes stand below.")
    if report.skipped:
        page.note(f"{len(report.skipped)} images could not be read; run.json names them.", "warn")
    page.section("Classes").table(
        ("class", "IoU %", "accuracy %", "share of pixels %"),
        [(label, *map(_cell, figures)) for label, *figures in _by_iou(report)],
        "The least IoU first. A dash: neither in the masks nor named.",
    )
    page.figure(record.folder / "pictures" / "confusion.png", "Pixels of each class, percent of the class.")
    page.save(record.folder / "report.html")


def _by_iou(report: SegmentationReport) -> list[tuple[str, float | None, float | None, float]]:
    """Class, IoU, accuracy and share of the pixels; the least IoU first, classes without one last."""
    ranked = sorted(report.iou, key=lambda label: (report.iou[label] is None, report.iou[label] or 0.0))
    return [(label, report.iou[label], report.accuracy[label], report.share[label]) for label in ranked]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def show_report(report: SegmentationReport) -> None:
    """Print the per-class table, the least IoU first."""
    table = Table(title=f"{report.images} images")
    for column in ("class", "IoU %", "accuracy %", "share of pixels %"):
        table.add_column(column, justify="left" if column == "class" else "right")
    ranked = _by_iou(report)
    for label, *figures in ranked[:_LISTED]:
        name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in label).replace("[", r"\[")
        table.add_row(name, *map(_cell, figures))
    if len(ranked) > _LISTED:
        table.add_row(f"({len(ranked) - _LISTED} better classes)", "", "", "")
    table.add_row("mean", f"{report.miou:.2f}", f"{report.mean_accuracy:.2f}", "", style="bold")
    Console().print(table)
    print(f"mIoU {report.miou:.2f} %, pixel accuracy {report.pixel_accuracy:.2f} %")
    for path, reason in report.skipped[:10]:
        print(f"skipped {path}: {reason}")
