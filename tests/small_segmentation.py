"""A small segmentation set of real photos whose classes are levels of brightness, and a run trained on it in seconds."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

LABELS = ("dark", "middle", "bright")
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
HEIGHT, WIDTH = 80, 96


def brightness_classes(image: Image.Image) -> np.ndarray:
    """uint8 [h, w]: 0, 1 or 2 by the brightness of the blurred image; a frame of two pixels belongs to no class."""
    grey = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(2)))
    mask = np.digitize(grey, (70, 140)).astype(np.uint8)
    frame = np.full_like(mask, 255)
    frame[2:-2, 2:-2] = mask[2:-2, 2:-2]
    return frame


def write_pairs(folder: Path, images: int, seed: int) -> None:
    """Crops of four photos in folder/images (JPEG) and their classes in folder/masks (PNG)."""
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos: pip install 'edgemim[quickstart]'")
    generator = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        photo = getattr(data, PHOTOS[number % len(PHOTOS)])()
        top, left = (int(generator.integers(0, side - 200)) for side in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + 200, left : left + 240]).resize((WIDTH, HEIGHT))
        crop.save(folder / "images" / f"{number:03d}.jpg", quality=95)
        Image.fromarray(brightness_classes(crop)).save(folder / "masks" / f"{number:03d}.png")


@functools.cache
def small_set(root: Path, train: int = 24, val: int = 6) -> Path:
    """Write train/ and val/ of the set and its classes.txt; made once for a given folder."""
    write_pairs(root / "train", train, seed=1)
    write_pairs(root / "val", val, seed=2)
    (root / "classes.txt").write_text("".join(f"{label}\n" for label in LABELS))
    return root


SETTINGS = {
    "name": "segmentation",
    "crop_size": 32,
    "inference": {"short_side": 48, "stride": 24},
    "head": {"channels": 16, "dropout": 0.0},
    "transform": {"scale": (0.8, 1.25), "photometric": False},
}


@functools.cache
def small_segmentation_run(root: Path) -> Path:
    """Write `root/data` and `root/run`, a model of a few seconds' training; made once for a given folder."""
    pytest.importorskip("torch")
    import torch

    import edgemim

    torch.set_num_threads(1)
    config = edgemim.FinetuneConfig.model_validate(
        {
            "task": SETTINGS,
            "data": small_set(root / "data"),
            "init": "scratch",
            "encoder": "vit_nano",
            "epochs": 12,
            "batch_size": 8,
            "base_lr": 0.2,
            "layer_decay": 1.0,
            "evaluate_every": 0,
            "workers": 0,
            "device": "cpu",
            "out": root / "run",
        }
    )
    edgemim.finetune(config)
    return root / "run"
