"""Pictures show every row: as many bars, marks and lines as there are figures."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer

from edgemim.edge.latency_plots import plot_accuracy, plot_bars_with_intervals, plot_throughput


def row(file: str = "onnx-fp32", runtime: str = "onnxruntime", p50: float | None = 10.0, **more: Any) -> dict[str, Any]:
    facts = {"model": "m", "file": file, "runtime": runtime, "precision": file.split("-")[-1], "batch": 2, "threads": 1}
    low, high = (None, None) if p50 is None else (0.9 * p50, 1.2 * p50)
    times = {"latency_p50_ms": p50, "latency_p50_low_ms": low, "latency_p50_high_ms": high}
    return {**facts, **times, "throughput_images_per_s": 1500.0, "disturbed": False, **more}


def widths(figure: Any) -> list[float]:
    bars = [bar for container in figure.axes[0].containers if isinstance(container, BarContainer) for bar in container]
    return [bar.get_width() for bar in bars]


def test_bars_are_latencies_of_an_image_and_lines_their_intervals() -> None:
    figure = plot_bars_with_intervals([row(), row("onnx-int8", p50=4.0, disturbed=True), row(runtime="x", p50=None)])
    assert widths(figure) == [5.0, 2.0]
    lines = [list(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert lines == [pytest.approx([4.5, 6.0]), pytest.approx([1.8, 2.4])]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "2 !" in texts and "5" in texts and "m" in texts


def test_models_stand_apart() -> None:
    figure = plot_throughput([row(), row(model="other"), row("onnx-int8", runtime="openvino-throughput", p50=None)])
    assert widths(figure) == [1500.0] * 3
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["onnx-fp32 on onnxruntime", "onnx-int8 on openvino-throughput", "onnx-fp32 on onnxruntime"]
    assert "1,500" in [text.get_text() for text in figure.axes[0].texts]


def test_accuracy_has_a_mark_for_each_row() -> None:
    figure = plot_accuracy([row(score=80.0), row("onnx-int8", p50=4.0, score=79.0)], "top-1")
    axes = figure.axes[0]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    assert sorted(map(tuple, marks)) == [(2.0, 79.0), (5.0, 80.0)]
    assert axes.get_ylabel() == "top-1"
    low, high = axes.get_ylim()
    assert low < 79 and high > 80
    assert not any(isinstance(part, PathCollection) for part in axes.collections)
