"""`edgemim evaluate` on a segmentation run: its own images again, other ones, both ways to lay the model over them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_segmentation import small_segmentation_run, write_pairs

torch = pytest.importorskip("torch")

import edgemim  # noqa: E402
from edgemim.errors import UserError  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_segmentation_run(tmp_path_factory.getbasetemp() / "small_segmentation")


def test_the_same_figures_as_at_the_end_of_training(run: Path, tmp_path: Path) -> None:
    trained = json.loads((run / "run.json").read_text())["results"]
    found = edgemim.evaluate(edgemim.EvaluateConfig(run=run, out=tmp_path / "e"))
    assert found["miou"] == pytest.approx(trained["miou"], abs=1e-6)
    assert found["confusion"] == trained["confusion"]
    assert (tmp_path / "e" / "pictures" / "overlays.png").is_file()
    page = (tmp_path / "e" / "report.html").read_text()
    assert f"mIoU {found['miou']:.2f} %" in page and page.count("data:image/png") == 2
    for label, figures in found["per_class"].items():
        assert re.search(rf"<td[^>]*>{label}</td>\s*<td[^>]*>{figures['iou']:.1f}</td>", page)


def test_the_whole_image_at_once(run: Path, tmp_path: Path) -> None:
    found = edgemim.evaluate(edgemim.EvaluateConfig(run=run, out=tmp_path / "e", mode="whole"))
    assert found["mode"] == "whole"
    trained = json.loads((run / "run.json").read_text())["results"]
    assert found["confusion"] != trained["confusion"]
    assert found["miou"] > trained["majority_baseline"]["miou"]


def test_other_images(run: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "more", 4, seed=11)
    found = edgemim.evaluate(edgemim.EvaluateConfig(run=run, data=tmp_path / "more", out=tmp_path / "e"))
    assert found["evaluated_images"] == 4
    (tmp_path / "more" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="are not those of the model"):
        edgemim.evaluate(edgemim.EvaluateConfig(run=run, data=tmp_path / "more", out=tmp_path / "f"))
    assert not (tmp_path / "f").exists()
