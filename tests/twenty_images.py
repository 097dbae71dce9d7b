"""The twenty real pictures on which all programs and runtimes must agree, in the forms that a decoder can get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COUNT = 20


def twenty_images(folder: Path, lossless: str = "png") -> list[Path]:
    """Write them, sorted by name: ten JPEGs (each EXIF orientation, grey, a close crop), ten in a lossless form.

    The lossless ones have the same pixels as 'png' and as 'ppm', but that one of the PNGs has transparency, which the PPM
    shows on white.
    """
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos: pip install 'edgemim[quickstart]'")
    folder.mkdir(parents=True, exist_ok=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = Image.fromarray(data.coffee()[40:300, 100:500])
        turned.save(folder / f"turned{orientation}.jpg", exif=exif, quality=85)
    Image.fromarray(data.rocket()).convert("L").save(folder / "grey.jpg")
    Image.fromarray(data.chelsea()[60:220, 100:260]).save(folder / "face.jpg", quality=90)
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(data, name)()
        Image.fromarray(photo).save(folder / f"{name}.{lossless}")
        Image.fromarray(photo[30:126, 150:246]).resize((64, 64)).save(folder / f"{name}-crop.{lossless}")
    Image.fromarray(data.chelsea()[:77, :201]).save(folder / f"wide.{lossless}")
    seen = np.where(np.arange(201) < 90, 0, 255).astype(np.uint8)[None].repeat(77, 0)
    clear = Image.fromarray(np.dstack([data.chelsea()[100:177, :201], seen]))
    white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    (clear if lossless == "png" else white).save(folder / f"clear.{lossless}")
    written = sorted(folder.iterdir())
    assert len(written) == COUNT
    return written
