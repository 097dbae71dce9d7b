"""Features of images as files: an array that NumPy reads, and which row is which image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.errors import UserError
from edgemim.run import write_text

ARRAY, NAMES = "features.npy", "features.csv"


def write_features(out: Path, found: Sequence[dict[str, Any]]) -> str:
    """Write float32 [images, width] and the image of each row; returns what to tell the user.

    Args:
        out: a folder that is there.
        found: `image` and `features`, float32 [width], of one image or more.

    Raises:
        UserError: on a full disk; no half file is left.
    """
    features = np.stack([entry["features"] for entry in found])
    temporary = out / f"{ARRAY}.tmp"
    try:
        with temporary.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        os.replace(temporary, out / ARRAY)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {out / ARRAY}: {error.strerror or error}; free space or choose another --out"
        ) from error
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "image"])
    writer.writerows((row, entry["image"]) for row, entry in enumerate(found))
    write_text(out / NAMES, text.getvalue())
    count, width = features.shape
    return f"features of {count} images, {width} numbers each, in {out / ARRAY}, their names in {NAMES}"
