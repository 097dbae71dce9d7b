"""The quick start's image set: crops of the photos that come with scikit-image, written as plain image folders.

The task is *which photo is this crop from*: training crops come from the left part of each photo, test crops from the
right part, so that no test pixel was ever trained on, while light, camera and subject are the same.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from edgemim.config import Config
from edgemim.errors import MissingLibrary, UserError


class Photo(NamedTuple):
    """A photo that scikit-image carries in its wheel: class name, function in `skimage.data`, credit by its docstring."""

    name: str
    function: str
    credit: str


PHOTOS = (
    Photo("astronaut", "astronaut", "Eileen Collins, NASA Great Images database; public domain"),
    Photo("brick", "brick", "CC0Textures, Bricks25; CC0"),
    Photo("cat", "cat", "Chelsea the cat, Stefan van der Walt; CC0"),
    Photo("clock", "clock", "Stefan van der Walt; public domain"),
    Photo("coffee", "coffee", "Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0"),
    Photo("coins", "coins", "Brooklyn Museum Collection; no known copyright restrictions"),
    Photo("grass", "grass", "linolafett, DeviantArt; CC0"),
    Photo("gravel", "gravel", "CC0Textures, Gravel04; CC0"),
    Photo("hubble", "hubble_deep_field", "NASA, HubbleSite; public domain"),
    Photo("motorcycle", "stereo_motorcycle", "D. Scharstein et al., Middlebury 2014 stereo benchmark"),
    Photo("retina", "retina", "Mikael Häggström, WikiJournal of Medicine 1 (2), 2014; CC0"),
    Photo("rocket", "rocket", "SpaceX; public domain"),
    Photo("text", "text", "Wikimedia Commons, Corner.png; public domain"),
    Photo("tissue", "immunohistochemistry", "Center for Microscopy and Molecular Imaging; no known restrictions"),
)


class PhotoCropsConfig(Config):
    """How many crops of each photo go where, and how large they are."""

    seed: int = 0
    """Seed of the places of all crops."""
    crop_px: int = 64
    """Side of a crop in pixels."""
    max_height_px: int = 512
    """Taller photos are shrunk to this height first, so that a crop of each shows more than one flat patch."""
    train_part: float = 0.6
    """Left part of each photo's width for the unlabelled and the training crops; the rest is for the test crops."""
    unlabelled_per_photo: int = 215
    """Unlabelled crops a photo, for pre-training."""
    train_per_photo: int = 20
    """Labelled training crops a photo."""
    test_per_photo: int = 50
    """Test crops a photo."""


@dataclass(frozen=True)
class PhotoCrops:
    """Where the three folders of the set lie, and the name of each class."""

    unlabelled: Path
    train: Path
    test: Path
    classes: tuple[str, ...]


def write_photo_crops(folder: Path, config: PhotoCropsConfig | None = None) -> PhotoCrops:
    """Write the set below `folder`: `unlabelled/*.png`, `train/PHOTO/*.png`, `test/PHOTO/*.png`, `CREDITS.txt`.

    A complete set of the same config and scikit-image version is reused. The same seed gives the same files.
    Raises UserError if `folder` holds something else or a photo is too small, MissingLibrary without scikit-image.
    """
    config = config or PhotoCropsConfig()
    wanted = {"made_by": "edgemim.data.photos", "scikit_image": _skimage_version(), **config.model_dump()}
    crops = PhotoCrops(folder / "unlabelled", folder / "train", folder / "test", tuple(p.name for p in PHOTOS))
    if folder.exists() and any(folder.iterdir()):
        if _read_json(folder / "photos.json") == wanted:
            return crops
        raise UserError(f"{folder} holds another set of images; give another folder or delete this one first")
    # Written beside and renamed, so that a folder that is there is complete.
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write_all(unfinished, config)
        (unfinished / "photos.json").write_text(json.dumps(wanted, indent=2) + "\n")
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free space or choose another --out"
        ) from error
    return crops


def _write_all(folder: Path, config: PhotoCropsConfig) -> None:
    for number, photo in enumerate(PHOTOS):
        image = load_photo(photo, config.max_height_px)
        middle = round(image.shape[1] * config.train_part)
        # A generator a photo and a purpose: more crops of one kind leave the others where they are.
        left, right = image[:, :middle], image[:, middle:]
        parts = (
            ("unlabelled", left, config.unlabelled_per_photo, folder / "unlabelled"),
            ("train", left, config.train_per_photo, folder / "train" / photo.name),
            ("test", right, config.test_per_photo, folder / "test" / photo.name),
        )
        for purpose, (kind, part, count, target) in enumerate(parts):
            target.mkdir(parents=True, exist_ok=True)
            draw = np.random.default_rng([config.seed, number, purpose])
            # One flat folder, numbered through: a set without labels.
            first = number * count if kind == "unlabelled" else 0
            for index, crop in enumerate(random_crops(part, count, config.crop_px, draw)):
                Image.fromarray(crop).save(target / f"{first + index:05d}.png")
    (folder / "CREDITS.txt").write_text(credits_text())


def random_crops(image: np.ndarray, count: int, crop_px: int, draw: np.random.Generator) -> np.ndarray:
    """`count` square windows at uniform places, uint8 [count, crop_px, crop_px]. Raises UserError if they do not fit."""
    height, width = image.shape
    if min(height, width) < crop_px:
        raise UserError(f"a part of {width}×{height} px holds no crop of {crop_px} px; lower crop_px")
    tops = draw.integers(0, height - crop_px + 1, count)
    lefts = draw.integers(0, width - crop_px + 1, count)
    return np.stack([image[t : t + crop_px, x : x + crop_px] for t, x in zip(tops, lefts, strict=True)])


def load_photo(photo: Photo, max_height_px: int) -> np.ndarray:
    """A packaged photo as grey uint8 [h, w], at most `max_height_px` high. No network is used."""
    data = _skimage_data()
    image = getattr(data, photo.function)()
    grey = Image.fromarray(image[0] if isinstance(image, tuple) else image).convert("L")
    if grey.height > max_height_px:
        width = round(grey.width * max_height_px / grey.height)
        grey = grey.resize((width, max_height_px), Image.Resampling.LANCZOS)
    return np.asarray(grey)


def credits_text() -> str:
    """Who took the photos and on what terms, as scikit-image's documentation says."""
    lines = ["Crops of photos that come with the Python package scikit-image (skimage.data), made grey.", ""]
    return "\n".join(lines + [f"{photo.name}: {photo.credit}" for photo in PHOTOS]) + "\n"


def _skimage_data():
    try:
        import skimage.data
    except ModuleNotFoundError as error:
        raise MissingLibrary("the quick start's photos need scikit-image: pip install 'edgemim[quickstart]'") from error
    return skimage.data


def _skimage_version() -> str:
    _skimage_data()
    return importlib.metadata.version("scikit-image")


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
