"""One mask file as class numbers, whatever it is coded in; a value that is no class is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from edgemim.data.segmentation.classes import Colour
from edgemim.edge.images import MAX_PIXELS
from edgemim.edge.segmentation import IGNORE
from edgemim.errors import UserError

_FORMATS = ("PNG", "BMP", "GIF", "TIFF", "PPM")


@dataclass(frozen=True)
class MaskCode:
    """How a set's masks say the class of a pixel.

    Attributes:
        classes: number of classes; 0 to classes - 1 are theirs.
        shift: what is subtracted from a pixel's value to give its class.
        ignored: values of the file that belong to no class, before the shift.
        colours: class of each colour, where masks are colour pictures.
    """

    classes: int
    shift: int = 0
    ignored: frozenset[int] = frozenset({IGNORE})
    colours: dict[Colour, int] | None = field(default=None)

    def read(self, path: Path) -> np.ndarray:
        """uint8 [h, w] of class numbers, 255 where there is none.

        Raises UserError if the file cannot be read, is a colour picture of unknown colours, or holds another value.
        """
        values = _open(path)
        if values.ndim == 3:
            return self._of_colours(values, path)
        # One step for all pixels: a table from value to class.
        table = np.full(max(256, int(values.max(initial=0)) + 1), -1, np.int16)
        table[self.shift : self.shift + self.classes] = np.arange(self.classes)
        table[[value for value in self.ignored if value < len(table)]] = IGNORE
        labels = table[values]
        if labels.size and labels.min() < 0:
            value = int(values[labels < 0].flat[0])
            last, ignored = self.shift + self.classes - 1, ", ".join(map(str, sorted(self.ignored)))
            raise UserError(
                f"mask {path} holds the value {value}; the {self.classes} classes are {self.shift} to {last}, and "
                f"{ignored} is ignored: correct the mask or the class names"
            )
        return labels.astype(np.uint8)

    def _of_colours(self, pixels: np.ndarray, path: Path) -> np.ndarray:
        if self.colours is None:
            raise UserError(
                f"mask {path} is a colour picture; masks hold class numbers (grey or palette), or --task.classes names "
                "a JSON or CSV file with the colour of each class"
            )
        coded = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
        known = np.array([(r << 16) + (g << 8) + b for r, g, b in self.colours])
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known[order], coded), len(known) - 1)
        if (wrong := known[order][place] != coded).any():
            red, green, blue = (int(part) for part in pixels[wrong][0])
            raise UserError(f"mask {path} holds the colour ({red}, {green}, {blue}), which is no class's")
        return np.array(list(self.colours.values()), np.uint8)[order][place]


def mask_size(path: Path) -> tuple[int, int]:
    """Height and width, from the header. Raises UserError."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            return picture.height, picture.width
    except FileNotFoundError as error:
        raise UserError(f"mask {path} is missing") from error
    except Exception as error:  # Pillow's readers raise nearly every class on damaged bytes
        raise UserError(
            f"mask {path} cannot be read as a lossless picture ({type(error).__name__}: {error})"
        ) from error


def _open(path: Path) -> np.ndarray:
    """Integer [h, w] or, of a colour picture, uint8 [h, w, 3]."""
    height, width = mask_size(path)
    if height * width > MAX_PIXELS:
        raise UserError(f"mask {path} is too large: {width}×{height} is over the limit of {MAX_PIXELS} pixels")
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            picture.load()
            if picture.mode in ("L", "P"):
                return np.asarray(picture)
            if picture.mode == "1":
                return np.asarray(picture).astype(np.uint8)
            if picture.mode.startswith("I"):
                return np.asarray(picture).astype(np.int32).clip(min=0)
            return np.asarray(picture.convert("RGB"))
    except Exception as error:
        raise UserError(f"mask {path} cannot be decoded ({type(error).__name__}: {error})") from error
