"""Masks in every common coding become the same numbers; values that are no class are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemim.data.segmentation.masks import MaskCode, mask_size
from edgemim.errors import UserError

TRUTH = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
COLOURS = {(10, 0, 0): 0, (0, 20, 0): 1, (0, 0, 30): 2, (1, 1, 1): 255}


def saved(path: Path, picture: Image.Image) -> Path:
    picture.save(path)
    return path


def palette_png(path: Path) -> Path:
    picture = Image.fromarray(TRUTH, mode="P")
    picture.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    return saved(path, picture)


def test_grey_palette_and_deep_masks_are_numbers(tmp_path: Path) -> None:
    code = MaskCode(3)
    files = [
        saved(tmp_path / "grey.png", Image.fromarray(TRUTH)),
        palette_png(tmp_path / "palette.png"),
        saved(tmp_path / "deep.png", Image.fromarray(TRUTH.astype(np.uint16))),
        saved(tmp_path / "grey.bmp", Image.fromarray(TRUTH)),
    ]
    for file in files:
        found = code.read(file)
        assert found.dtype == np.uint8
        assert (found == TRUTH).all(), file
        assert mask_size(file) == (2, 3)


def test_two_levels_are_two_classes(tmp_path: Path) -> None:
    bits = np.array([[True, False]])
    assert (MaskCode(2).read(saved(tmp_path / "bits.png", Image.fromarray(bits))) == bits).all()


def test_shifted_numbers(tmp_path: Path) -> None:
    """ADE20K: 0 is no class, 1 the first."""
    shifted = np.where(TRUTH == 255, 0, TRUTH + 1).astype(np.uint8)
    code = MaskCode(3, shift=1, ignored=frozenset({0, 255}))
    assert (code.read(saved(tmp_path / "a.png", Image.fromarray(shifted))) == TRUTH).all()


def test_colour_pictures(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    for colour, number in COLOURS.items():
        pixels[number == TRUTH] = colour
    path = saved(tmp_path / "colour.png", Image.fromarray(pixels))
    assert (MaskCode(3, colours=COLOURS).read(path) == TRUTH).all()
    with pytest.raises(UserError, match="is a colour picture"):
        MaskCode(3).read(path)
    pixels[0, 0] = (9, 9, 9)
    with pytest.raises(UserError, match=r"holds the colour \(9, 9, 9\), which is no class's"):
        MaskCode(3, colours=COLOURS).read(saved(tmp_path / "odd.png", Image.fromarray(pixels)))


@pytest.mark.parametrize("value", [3, 77, 254])
def test_a_value_beyond_the_classes_is_named(tmp_path: Path, value: int) -> None:
    wrong = TRUTH.copy()
    wrong[1, 0] = value
    path = saved(tmp_path / "wrong.png", Image.fromarray(wrong))
    with pytest.raises(
        UserError, match=rf"wrong\.png holds the value {value}; the 3 classes are 0 to 2, and 255 is ignored"
    ):
        MaskCode(3).read(path)


def test_a_value_of_16_bits_beyond_the_classes_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "deep.png", Image.fromarray(np.array([[0, 4000]], np.uint16)))
    with pytest.raises(UserError, match="holds the value 4000"):
        MaskCode(3).read(path)


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = saved(
        tmp_path / "whole.png", Image.fromarray(np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8))
    )
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-200])
    # Compression would have changed the numbers.
    saved(tmp_path / "lossy.jpg", Image.fromarray(TRUTH))
    for name, sentence in (("text.png", "cannot be read"), ("cut.png", "cannot be decoded"), ("lossy.jpg", "lossless")):
        with pytest.raises(UserError, match=sentence):
            MaskCode(3).read(tmp_path / name)
    with pytest.raises(UserError, match="is missing"):
        MaskCode(3).read(tmp_path / "absent.png")
