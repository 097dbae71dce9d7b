import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from edgemim.edge.report import (
    Report,
    column,
    plot_bars,
    plot_confusion,
    plot_curves,
    plot_images,
    plot_latency,
    read_metrics,
    save_figure,
)
from edgemim.errors import UserError

SCRIPT = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Collects tags, attributes that load something, and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def sample_report() -> Report:
    report = Report(f"title {SCRIPT}", f"lead {SCRIPT}")
    report.section(f"section {SCRIPT}").text(f"text {SCRIPT}").note(f"note {SCRIPT}", "warn").code(f"code {SCRIPT}")
    report.table([f"column {SCRIPT}", "b"], [[f"cell {SCRIPT}", 1.5]], f"caption {SCRIPT}", best=0)
    report.figure(plot_curves({"a": ([0, 1], [1, 2])}, x="step", y="loss"), f'figure "{SCRIPT}"')
    return report


def test_everything_given_is_shown_as_text_and_never_runs():
    html = sample_report().html()
    assert "<script" not in html
    page = Page(html)
    assert "script" not in page.tags
    shown = " ".join(page.words)
    for place in ("title", "lead", "section", "text", "note", "code", "column", "cell", "caption"):
        assert f"{place} {SCRIPT}" in shown
    assert html.count('alt="figure') == 1
    assert 'onerror="' not in html


def test_the_page_needs_nothing_but_itself(tmp_path: Path):
    path = sample_report().save(tmp_path / "deep" / "report.html")
    html = path.read_text()
    loads = Page(html).loads
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in loads)
    assert not re.search(r"https?://", html)
    assert "@import" not in html
    assert "url(" not in html
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_figures_are_whole_pngs_of_the_stated_shape():
    html = sample_report().html()
    found = re.search(r'src="data:image/png;base64,([^"]+)"[^>]*width="(\d+)" height="(\d+)"', html)
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as image:
        image.load()
        assert image.width / image.height == pytest.approx(int(found[2]) / int(found[3]), rel=0.01)


def test_an_image_file_is_embedded_pixel_for_pixel(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    html = Report("t").section("s").figure(tmp_path / "a.png", "c").html()
    content = re.search(r"base64,([^\"]+)", html)
    assert content is not None
    with Image.open(io.BytesIO(base64.b64decode(content[1]))) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_a_missing_or_broken_picture_is_one_sentence(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("none.png", "broken.png"):
        with pytest.raises(UserError, match=name):
            Report("t").section("s").figure(tmp_path / name, "c")


def test_numbers_align_right_and_words_left():
    rows = [["a", "47.6 ± 1.2", 2, "1.9×"], ["b", "–", 3, "0.8×"]]
    html = Report("t").section("s").table(["name", "top-1", "seeds", "speed"], rows).html()
    assert html.count('<th class="number">') == 3
    assert html.count('<td class="number">') == 6


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="3 cells in a table of 2"):
        Report("t").section("s").table(["a", "b"], [[1, 2, 3]])
    with pytest.raises(ValueError, match="section first"):
        Report("t").text("x")


def test_metrics_survive_a_half_written_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "knn": 5}\n{"step": 3, "lo')
    metrics = read_metrics(path)
    assert column(metrics, "loss") == ([1, 2], [2.0, 1.0])
    assert column(metrics, "knn") == ([2], [5])
    assert read_metrics(tmp_path / "none.jsonl") == []


def pixels_of(figure: Figure, path: Path) -> np.ndarray:
    with Image.open(save_figure(figure, path / "sub" / "figure.png")) as image:
        return np.asarray(image.convert("RGB"))


def test_bars_show_mean_deviation_and_every_point():
    figure = plot_bars({"a": [40.0, 44.0], "b": [10.0]}, y="%", baseline=7.1, note="chance")
    axes = figure.axes[0]
    assert [patch.get_height() for patch in axes.patches] == [42.0, 10.0]
    dots = sorted(float(y) for line in axes.lines if line.get_marker() == "o" for y in line.get_ydata())
    assert dots == [10.0, 40.0, 44.0]
    whiskers = [np.ptp(part.get_segments()[0][:, 1]) for part in axes.collections]  # pyright: ignore
    assert whiskers == pytest.approx([2 * np.std([40, 44], ddof=1), 0.0])


def test_confusion_matrix_shades_each_row_by_its_share(tmp_path: Path):
    counts = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
    figure = plot_confusion(counts, ["a", "b", "empty"])
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[0.8, 0.2, 0], [0, 0.5, 0.5], [0, 0, 0]])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["2", "5", "5", "8"]
    assert pixels_of(figure, tmp_path).std() > 5
    assert not plot_confusion(np.eye(200, dtype=int), [str(i) for i in range(200)]).axes[0].texts


def test_latency_rows_run_top_to_bottom_from_median_to_p99(tmp_path: Path):
    figure = plot_latency({"slow": (3.0, 3.5, 90.0), "fast": (1.0, 1.1, 1.2)})
    axes = figure.axes[0]
    dots = [(float(line.get_xdata()[0]), line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [(3.0, 0), (1.0, 1)]
    ranges = [tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "None"]
    assert ranges == [(3.0, 90.0), (1.0, 1.2)]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[1] > 90.0
    assert pixels_of(figure, tmp_path).std() > 5


def test_image_grid_keeps_pixels_sharp():
    figure = plot_images([[np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255, np.uint8)]] * 2, ["a", "b"])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "", ""]
    assert figure.axes[0].images[0].get_interpolation() == "nearest"


def test_no_display_and_no_global_figures_are_used():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    sample_report().html()
    assert plt.get_fignums() == before
