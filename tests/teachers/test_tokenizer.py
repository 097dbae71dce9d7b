"""What a tokenizer file may be, and what its words are: nearest colours, found again by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tokenizer import colour_codebook, patch_colours, write_tokenizer
from tiny_training import pixels

from edgemim.errors import UserError
from edgemim.teachers.tokenizer import OnnxTokenizer

IMAGES = pixels(5, 32, seed=3).float() / 255
BOOK = colour_codebook(patch_colours(IMAGES.numpy(), 8).reshape(-1, 3), 6)


def opened(path: Path, **changes: object) -> OnnxTokenizer:
    facts = {"image_size": 32, "grid": (4, 4), "vocabulary": 6}
    return OnnxTokenizer(path, **{**facts, **changes})  # pyright: ignore[reportArgumentType]


def nearest(images: np.ndarray, patch: int) -> np.ndarray:
    """The slow, obvious tokenizer."""
    return np.array(
        [
            [int(((colour - BOOK) ** 2).sum(1).argmin()) for colour in image.reshape(-1, 3)]
            for image in patch_colours(images, patch)
        ]
    )


@pytest.mark.parametrize("scores", [True, False], ids=["scores", "integers"])
@pytest.mark.parametrize("batch", ["b", 1], ids=["free", "one"])
@pytest.mark.parametrize("side", ["h", 32], ids=["any size", "fixed size"])
def test_words_are_the_nearest_colours(tmp_path: Path, scores: bool, batch: int | str, side: int | str) -> None:
    path = write_tokenizer(tmp_path / "t.onnx", BOOK, 8, scores=scores, batch=batch, side=side)
    tokenizer = opened(path)
    words = tokenizer(IMAGES)
    assert words.dtype == torch.int64 and words.shape == (5, 16)
    assert np.array_equal(words.numpy(), nearest(IMAGES.numpy(), 8))
    assert len(words.unique()) > 3
    assert (tokenizer.vocabulary, tokenizer.input_size) == (6, 32)
    assert "6 words on 4×4" in tokenizer.summary


def test_images_are_resized_to_what_it_reads(tmp_path: Path) -> None:
    """As the published tokenizer does: half the side of the encoder's images."""
    small = torch.nn.functional.interpolate(IMAGES, size=(16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    fixed = opened(write_tokenizer(tmp_path / "fixed.onnx", BOOK, 4, side=16))
    chosen = opened(write_tokenizer(tmp_path / "free.onnx", BOOK, 4), input_size=16)
    assert fixed.input_size == chosen.input_size == 16
    expected = nearest(small.numpy(), 4)
    assert np.array_equal(fixed(IMAGES).numpy(), expected)
    assert np.array_equal(chosen(IMAGES).numpy(), expected)


@pytest.mark.parametrize(
    ("patch", "facts", "words"),
    [
        (4, {}, ["8×8 words", "4×4 patches", "'method.tokenizer_size' to 16"]),
        (4, {"side": 32}, ["8×8 words", "another tokenizer"]),
        (8, {"side": 32, "input_size": 16}, ["reads 32 px, not 16"]),
        (5, {}, ["6×6 words", "another tokenizer"]),
        (64, {}, ["cannot read 32 px"]),
        (8, {"batch": 7}, ["7 images at a time"]),
        (8, {"inputs": 2}, ["it must have one, float32"]),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, patch: int, facts: dict, words: list[str]
) -> None:
    size = {"input_size": facts.pop("input_size")} if "input_size" in facts else {}
    path = write_tokenizer(tmp_path / "t.onnx", BOOK, patch, **facts)
    with pytest.raises(UserError) as refused:
        opened(path, **size)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_file_and_no_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer file"):
        opened(tmp_path / "absent.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="refused by ONNX Runtime"):
        opened(tmp_path / "noise.onnx")


def test_a_word_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "t.onnx", BOOK, 8, scores=False)
    with pytest.raises(UserError, match=r"outside a vocabulary of 3; set 'method\.vocabulary'"):
        opened(path, vocabulary=3)(IMAGES)
