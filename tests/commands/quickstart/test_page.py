import dataclasses
import re

from edgemim.commands.quickstart.config import ARMS
from edgemim.commands.quickstart.page import write_page


def shown(html: str) -> str:
    """The page's text: no tags, no pictures."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)))


def test_it_says_what_it_does_not_show(started):
    text = shown(started.html)
    assert "What this does not show" in text
    assert "Test crops come from the same photos" in text
    assert "The test crops played no part in it" in text


def test_it_holds_every_figure_of_the_run(started):
    text = shown(started.html)
    for arm, title in ARMS.items():
        assert title in text
        assert f"{started.results['test_top1'][arm][0]:.1f}" in text
    for word in (
        "relative error",
        "onnx-int8",
        "p99 ms",
        "onnxruntime",
        "pre-training min",
        "k-NN",
        "edgemim pretrain",
    ):
        assert word in text
    assert started.results["teacher"] in text
    assert "Lav Varshney" not in text, "credits are of the photos that are used"
    assert "Rachel Michetti" in text


def test_pictures_curves_and_charts_are_embedded(started):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", started.html, flags=re.DOTALL)
    wanted = ("Crops of", "feature loss", "pixel loss", "masked input", "every seed", "Test crops by true", "One image")
    assert all(any(word in caption for caption in captions) for word in wanted)
    assert started.html.count("data:image/png;base64,") == len(captions)


def test_a_refusal_stands_in_the_first_section(started, tmp_path):
    outcome = dataclasses.replace(started.outcome, refusal="INT8 refused on 56 images: onnx-int8: slower <b>")
    html = write_page(outcome, tmp_path / "report.html").read_text()
    assert html.index("INT8 refused on 56 images") < html.index("<h2>The images</h2>")
    assert "slower &lt;b&gt;" in html
