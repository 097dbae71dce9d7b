"""Pictures of classes: colours that differ, masks that read back as numbers, overlays that keep ignored pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemim.edge.overlay import class_colours, overlay, paint, plot_legend, plot_masks, save_mask, save_picture
from edgemim.edge.report import save_figure
from edgemim.errors import UserError


def test_colours_differ_and_do_not_change_with_their_number() -> None:
    colours = class_colours(150)
    assert len({tuple(colour) for colour in colours[:150]}) == 150
    assert not colours[150:255].any()
    few = colours[:20].astype(int)
    apart = np.abs(few[:, None] - few[None]).sum(2) + 1000 * np.eye(20, dtype=int)
    assert apart.min() > 60
    assert (class_colours(11)[:11] == colours[:11]).all()
    assert tuple(colours[255]) == (255, 255, 255)


def test_a_mask_is_read_back_as_numbers_and_shows_its_colours(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 11, (20, 30)).astype(np.uint8)
    mask[0] = 255
    save_mask(mask, tmp_path / "deep" / "mask.png", 11)
    with Image.open(tmp_path / "deep" / "mask.png") as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture) == mask).all()
        assert (np.asarray(picture.convert("RGB")) == paint(mask, 11)).all()


def test_an_overlay_leaves_ignored_pixels_as_they_are() -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    found = overlay(image, mask, 3, opacity=0.5)
    assert (found[:4] == image[:4]).all()
    grey, colour = image[4:].mean(2, keepdims=True), class_colours(3)[0]
    np.testing.assert_allclose(found[4:].astype(float), 0.5 * grey + 0.5 * colour, atol=0.51)


@pytest.mark.parametrize("classes", [2, 11, 150])
def test_figures_of_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    labels = [f"class $_{number}" for number in range(classes)]
    pictures = [np.zeros((h, 40, 3), np.uint8) for h in (30, 60)]
    save_figure(plot_legend(labels), tmp_path / "legend.png")
    save_figure(plot_masks([[p, p] for p in pictures], ("image", "mask"), labels), tmp_path / "masks.png")
    for name in ("legend.png", "masks.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 1


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_picture(np.zeros((2, 2, 3), np.uint8), tmp_path / "file" / "picture.png")
