"""A small real tokenizer for tests: k-means over the mean colours of patches, as an ONNX file."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx: pip install 'edgemim[train]'")

_FOLDER = tempfile.TemporaryDirectory(prefix="tokenizers-")


def patch_colours(images: np.ndarray, patch: int) -> np.ndarray:
    """Mean colour of each patch of images in [0, 1], [b, 3, h, w] -> [b, rows, columns, 3]."""
    b, _, h, w = images.shape
    return images.reshape(b, 3, h // patch, patch, w // patch, patch).mean((3, 5)).transpose(0, 2, 3, 1)


def colour_codebook(colours: np.ndarray, words: int) -> np.ndarray:
    """k-means (Lloyd's algorithm) over [n, 3]: [words, 3]."""
    generator = np.random.default_rng(0)
    book = colours[generator.choice(len(colours), words, replace=False)].astype(np.float64)
    for _ in range(10):
        nearest = ((colours[:, None] - book[None]) ** 2).sum(2).argmin(1)
        for word in np.unique(nearest):
            book[word] = colours[nearest == word].mean(0)
    return book.astype(np.float32)


def write_tokenizer(
    path: Path,
    book: np.ndarray,
    patch: int,
    *,
    scores: bool = True,
    batch: int | str = "b",
    side: int | str = "h",
    inputs: int = 1,
) -> Path:
    """An ONNX file that gives each patch the word of the nearest colour, or with `scores` -distance² + |x|² for each.

    |x - c|² = |x|² - 2 c·x + |c|²: with x a mean of pixels, one convolution gives 2 c·x - |c|².
    """
    weight = np.repeat(2 * book / patch**2, patch**2, axis=1).reshape(len(book), 3, patch, patch)
    arrays = {"weight": weight.astype(np.float32), "bias": -(book**2).sum(1)}
    nodes = [onnx.helper.make_node("Conv", ["images", "weight", "bias"], ["scores"], strides=[patch, patch])]
    if not scores:
        nodes.append(onnx.helper.make_node("ArgMax", ["scores"], ["words"], axis=1, keepdims=0))
    kind = onnx.TensorProto
    sides = [side, "w" if side == "h" else side]
    given = [onnx.helper.make_tensor_value_info("images", kind.FLOAT, [batch, 3, *sides])]
    given += [onnx.helper.make_tensor_value_info(f"more{i}", kind.FLOAT, [1]) for i in range(1, inputs)]
    name, of, shape = (
        ("scores", kind.FLOAT, [batch, len(book), "r", "c"]) if scores else ("words", kind.INT64, [batch, "r", "c"])
    )
    made = [onnx.helper.make_tensor_value_info(name, of, shape)]
    constants = [onnx.numpy_helper.from_array(value, key) for key, value in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "tokenizer", given, made, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@cache
def noise_tokenizer(patch: int, words: int = 12) -> Path:
    """A file for images of noise, whose patches' mean colours lie near grey; it lasts as long as the process."""
    images = np.random.default_rng(1).random((40, 3, 4 * patch, 4 * patch))
    book = colour_codebook(patch_colours(images, patch).reshape(-1, 3), words)
    return write_tokenizer(Path(_FOLDER.name) / f"noise-{patch}-{words}.onnx", book, patch)
