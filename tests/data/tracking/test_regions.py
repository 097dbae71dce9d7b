"""Random regions: inside the picture as it is shown, of the sizes that are promised, and rather not of an empty wall."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tracking_sets import photo

from edgemim.data.folders import scan_folder
from edgemim.data.tracking.regions import RandomRegions, random_box
from edgemim.edge.images import ImageError, load_image


def test_boxes_lie_inside_and_have_the_promised_sizes() -> None:
    rng = random.Random(0)
    boxes = np.array([random_box(400, 100, rng) for _ in range(4000)])
    assert boxes.min() >= 0 and (boxes[:, 0] + boxes[:, 2]).max() <= 400 and (boxes[:, 1] + boxes[:, 3]).max() <= 100
    means = np.log(np.sqrt(boxes[:, 2] * boxes[:, 3]) / 100)
    ends = np.log(0.08), np.log(0.45)
    assert ends[0] <= means.min() < ends[0] + 0.01 and means.max() <= ends[1] + 1e-9
    assert means.mean() == pytest.approx(sum(ends) / 2, abs=0.03)
    ratios = np.log(boxes[:, 2] / boxes[:, 3])
    assert abs(ratios.mean()) < 0.05 and ratios.max() <= math.log(2.5) + 1e-9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One photo as a lying JPEG that its EXIF tag sets upright."""
    lying = Image.fromarray(np.rot90(photo("rocket")[:300, :200]).copy())
    tag = Image.Exif()
    tag[0x0112] = 6
    lying.save(tmp_path / "a.jpg", exif=tag, quality=95)
    return tmp_path


def test_boxes_are_those_of_the_upright_picture(folder: Path) -> None:
    source = RandomRegions("r", scan_folder(folder, cache=False))
    height, width = load_image(folder / "a.jpg").shape[:2]
    assert height > width
    pairs = [source.draw(random.Random(seed)) for seed in range(60)]
    boxes = np.array([pair.search.box for pair in pairs])
    assert all(pair.template == pair.search for pair in pairs)
    assert (boxes[:, 1] + boxes[:, 3]).max() > width, "it reaches below the lying picture's edge"
    assert (boxes[:, 0] + boxes[:, 2]).max() <= width


def test_structure_is_preferred(tmp_path: Path) -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    image[:, 160:] = photo("coffee")[100:340, 200:360]
    Image.fromarray(image).save(tmp_path / "half.png")
    source = RandomRegions("r", scan_folder(tmp_path, cache=False))
    boxes = [source.draw(random.Random(seed)).search.box for seed in range(100)]
    flat = sum(box.left + box.width < 160 for box in boxes)
    uniform = sum(box.left + box.width < 160 for box in (random_box(320, 240, random.Random(s)) for s in range(100)))
    assert flat < 10 < uniform


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    Image.fromarray(photo("coffee")).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 3])
    with pytest.raises((ImageError, OSError)):
        RandomRegions("r", scan_folder(tmp_path, cache=False)).draw(random.Random(0))
