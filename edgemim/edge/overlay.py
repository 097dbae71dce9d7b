"""Classes of pixels as pictures: a fixed colour for each class, masks as palette PNGs, overlays and a legend."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from edgemim.edge.report import COLOURS
from edgemim.edge.segmentation import IGNORE
from edgemim.errors import UserError

_LEGEND_ROWS = 30


@functools.cache
def class_colours(count: int) -> np.ndarray:
    """uint8 [256, 3]: a colour for each of `count` classes, white for 255 and black for what is no class.

    The first seven are distinguishable with every kind of colour vision; each further one is, of a grid of colours,
    the farthest from all before it (and from white), so that a class keeps its colour however many follow.
    """
    chosen = [255 * np.asarray(to_rgb(colour)) for colour in COLOURS]
    levels = np.linspace(0, 255, 8)
    pool = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = np.min([_distances(pool, colour) for colour in (*chosen, np.full(3, 255.0))], axis=0)
    while len(chosen) < count:
        chosen.append(pool[nearest.argmax()])
        nearest = np.minimum(nearest, _distances(pool, chosen[-1]))
    colours = np.zeros((256, 3), np.uint8)
    colours[:count] = np.round(chosen[:count])
    colours[IGNORE] = 255
    colours.setflags(write=False)
    return colours


def _distances(pool: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """How different colours look, roughly: squared differences of red, green and blue weighed as the eye does."""
    red = (pool[:, 0] + colour[0]) / 2 / 256
    weights = np.stack([2 + red, np.full_like(red, 4), 3 - red], axis=1)
    return (weights * (pool - colour) ** 2).sum(1)


def paint(mask: np.ndarray, classes: int) -> np.ndarray:
    """uint8 [h, w] of class numbers -> uint8 [h, w, 3]; 255 is white."""
    return class_colours(classes)[mask]


def overlay(image: np.ndarray, mask: np.ndarray, classes: int, opacity: float = 0.55) -> np.ndarray:
    """The classes' colours laid over a greyed image, uint8 [h, w, 3]; pixels of 255 show the image alone."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    mixed = (1 - opacity) * grey + opacity * paint(mask, classes)
    return np.where((mask == IGNORE)[..., None], image, np.round(mixed)).astype(np.uint8)


def save_mask(mask: np.ndarray, path: Path, classes: int) -> None:
    """Write class numbers as an 8-bit palette PNG: the numbers are the pixels, viewers show the colours.

    Raises UserError if it cannot be written.
    """
    picture = Image.fromarray(mask)
    picture.putpalette(class_colours(classes).tobytes())
    save_picture(picture, path)


def save_picture(picture: Image.Image | np.ndarray, path: Path) -> None:
    """Write a picture as PNG; missing folders are made. Raises UserError if it cannot be written."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, "PNG")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
        ) from error


def plot_legend(labels: Sequence[str]) -> Figure:
    """The colour and name of each class."""
    columns = -(-len(labels) // _LEGEND_ROWS)
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(2.2 * columns, 0.25 + 0.22 * rows))
    _legend(figure, labels, columns, place="center")
    return figure


def plot_masks(rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str], labels: Sequence[str]) -> Figure:
    """Rows of pictures uint8 [h, w, 3] under column titles, the classes' colours below."""
    per_line = min(6, len(labels))
    lines = -(-min(len(labels), 60) // per_line)
    heights = [2.6 * images[0].shape[0] / images[0].shape[1] for images in rows]
    below = 0.1 + 0.22 * lines
    figure = Figure(figsize=(2.6 * len(columns), sum(heights) + 0.3 + below), layout="constrained")
    total = float(figure.get_figheight())
    figure.get_layout_engine().set(rect=(0, below / total, 1, 1 - below / total))  # pyright: ignore
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for line, images in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=9)
    _legend(figure, labels[:60], per_line, place="lower center")
    return figure


def _legend(figure: Figure, labels: Sequence[str], columns: int, *, place: Literal["center", "lower center"]) -> None:
    colours = class_colours(len(labels)) / 255
    # A name could be read as a formula.
    names = [label.replace("$", r"\$") for label in labels]
    patches = [Patch(facecolor=colours[number], label=name) for number, name in enumerate(names)]
    figure.legend(handles=patches, ncols=columns, loc=place, frameon=False, fontsize=8)
