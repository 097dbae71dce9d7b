"""Decode any common image file to 8-bit RGB and prepare it for a model: the one evaluation preprocessing of both wings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field

from edgemim.config import Config
from edgemim.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 128_000_000

# Pillow would try every format it knows on any file, PostScript through an external program among them.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class ImageError(UserError):
    """One image cannot be used; `reason` says why, the message also names the file."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"image {self.name}: {self.reason}"


def load_image(source: str | Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one image to uint8 [h, w, 3], RGB, upright.

    The EXIF orientation is applied; grey, palette and CMYK become RGB; transparent pixels are laid on white, as a
    browser shows them; of 16-bit samples the high byte counts; of an animation the first frame. Sizes are checked from
    the header, before pixels are allocated. Truncated files are refused. Pillow's own limit
    (twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 megapixels) holds whatever `max_pixels` says.

    Raises ImageError, whatever is wrong with the file.
    """
    name, stream = _named_stream(source)
    try:
        image = Image.open(stream, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"too large: {error}") from error
    except Exception as error:  # Pillow's readers raise nearly every class on damaged bytes
        raise ImageError(name, _header_fault(stream, error)) from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(name, f"too large: {width}×{height} is over the limit of {max_pixels} pixels")
        try:
            return _to_rgb(image)
        except Exception as error:
            raise ImageError(name, f"cannot be decoded ({type(error).__name__}: {error})") from error


def _named_stream(source: str | Path | bytes | BinaryIO) -> tuple[str, BinaryIO | Path]:
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>", io.BytesIO(source)
    if not isinstance(source, str | Path):
        return str(getattr(source, "name", "<stream>")), source
    path = Path(source)
    # Opening a pipe or a device could wait for ever.
    if not path.is_file():
        raise ImageError(str(path), "is not a regular file" if path.exists() else "does not exist")
    return str(path), path


def _header_fault(stream: BinaryIO | Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(stream, Path) and stream.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"is not an image in a known format ({', '.join(_FORMATS)})"
    return f"has a damaged header ({type(error).__name__}: {error})"


def _to_rgb(image: Image.Image) -> np.ndarray:
    image.load()
    upright = _upright(image)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PPM"):
        # Pillow keeps the high byte of 16-bit colour; the same for grey.
        grey = (np.asarray(upright) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode in ("I", "F"):
        raise ValueError("32-bit samples have no defined white level")
    if upright.has_transparency_data:
        overlay = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", overlay.size, (255, 255, 255, 255)), overlay)
    return np.array(upright.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    # Read after load(): Pillow's TIFF reader has then turned the pixels itself and dropped the tag.
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image
    operation = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if operation is None else image.transpose(operation)


class Preprocessing(Config):
    """Evaluation preprocessing: short side to `image_size / crop_pct`, centre crop, scale to [0, 1], normalise."""

    model_config = ConfigDict(allow_inf_nan=False)

    image_size: Annotated[int, Field(ge=1, le=16384)] = 224
    """Side of the square that the model sees, pixels."""

    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Side of the centre crop as a share of the resized short side."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of the resize, with antialiasing as Pillow does it."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of red, green, blue, subtracted after scaling to [0, 1]."""

    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        IMAGENET_STD
    )
    """Standard deviation of red, green, blue: the divisor."""

    def resize_crop(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> uint8 [image_size, image_size, 3].

        The pixels of resizing the short side to round(image_size / crop_pct) and cropping the centre, as torchvision
        counts them, up to rounding; only the crop is computed, so that a picture of 1×100,000 pixels costs no more
        memory than another.
        """
        height, width = image.shape[:2]
        short = round(self.image_size / self.crop_pct)
        resized_width = max(short, int(short * width / height))
        resized_height = max(short, int(short * height / width))
        left = round((resized_width - self.image_size) / 2) * width / resized_width
        top = round((resized_height - self.image_size) / 2) * height / resized_height
        right = min(width, left + self.image_size * width / resized_width)
        bottom = min(height, top + self.image_size * height / resized_height)
        cropped = Image.fromarray(image).resize(
            (self.image_size, self.image_size), _RESAMPLING[self.interpolation], box=(left, top, right, bottom)
        )
        return np.array(cropped)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., s, s, 3] -> float32 [..., 3, s, s]: divide by 255, subtract the mean, divide by the deviation.

        In this order and in float32, so that torch on the same uint8 pixels gives the same bits.
        """
        scaled = pixels.astype(np.float32) / np.float32(255)
        scaled = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> float32 [3, image_size, image_size], normalised."""
        return self.normalise(self.resize_crop(image))
