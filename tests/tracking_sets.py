"""Small tracking sets of real photos in the layouts of published ones: a crop that wanders over a photo is a video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
HEIGHT, WIDTH = 96, 128


def photo(name: str) -> np.ndarray:
    """A photo that scikit-image carries, uint8 [h, w, 3]."""
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos: pip install 'edgemim[quickstart]'")
    return getattr(data, name)()


def write_frames(folder: Path, frames: int, seed: int, name: str = "{:08d}.jpg", first: int = 1) -> np.ndarray:
    """A window that wanders over a photo, in numbered frames; the boxes float64 [frames, 4] of one thing in it."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    image = photo(PHOTOS[seed % len(PHOTOS)])
    top, left = (
        int(generator.integers(40, side - extent - 40))
        for side, extent in zip(image.shape, (HEIGHT, WIDTH), strict=False)
    )
    target = np.array([left + 50.0, top + 30.0, 28.0, 36.0])
    boxes = []
    for number in range(frames):
        top, left = top + int(generator.integers(-2, 3)), left + int(generator.integers(-2, 3))
        window = image[top : top + HEIGHT, left : left + WIDTH]
        Image.fromarray(window).save(folder / name.format(first + number), quality=92)
        boxes.append(target - [left, top, 0, 0])
    return np.array(boxes)


def write_boxes(path: Path, boxes: np.ndarray, delimiter: str = ",") -> None:
    """A row a frame."""
    path.write_text("".join(delimiter.join(f"{value:g}" for value in row) + "\n" for row in boxes))


def write_lasot(root: Path, sequences: int = 3, frames: int = 24) -> None:
    """cat/cat-1, cat/cat-2, ... and the list of them; of cat-1 the fourth to sixth frames are occluded."""
    for number in range(1, sequences + 1):
        folder = root / "cat" / f"cat-{number}"
        write_boxes(folder / "groundtruth.txt", write_frames(folder / "img", frames, number))
        occluded = [int(number == 1 and 3 <= frame < 6) for frame in range(frames)]
        (folder / "full_occlusion.txt").write_text(",".join(map(str, occluded)))
        (folder / "out_of_view.txt").write_text(",".join("0" * frames))
    (root / "training_set.txt").write_text("".join(f"cat-{number}\n" for number in range(1, sequences + 1)))


def write_got10k(root: Path, sequences: int = 3, frames: int = 24) -> None:
    """train/GOT-10k_Train_000001, ...; only the first has flags of absence."""
    names = [f"GOT-10k_Train_{number:06d}" for number in range(1, sequences + 1)]
    for number, name in enumerate(names):
        folder = root / "train" / name
        write_boxes(root / "boxes.tmp", write_frames(folder, frames, number))
        (root / "boxes.tmp").rename(folder / "groundtruth.txt")
        (folder / "meta_info.ini").write_text("[METAINFO]\nresolution: (128, 96)\n")
    (root / "train" / names[0] / "absence.label").write_text("0\n" * (frames - 2) + "1\n1\n")
    (root / "train" / "list.txt").write_text("".join(f"{name}\n" for name in names))


def write_trackingnet(root: Path, frames: int = 24) -> None:
    """Two chunks of two videos; frames are numbered from 0 without leading zeros."""
    for chunk in (0, 1):
        (root / f"TRAIN_{chunk}" / "anno").mkdir(parents=True)
        for number in (1, 2):
            part = root / f"TRAIN_{chunk}"
            boxes = write_frames(part / "frames" / f"v{chunk}{number}", frames, 2 * chunk + number, "{}.jpg", first=0)
            write_boxes(part / "anno" / f"v{chunk}{number}.txt", boxes)


def write_folder(root: Path, sequences: int = 3, frames: int = 24) -> None:
    """Plain sequences: NAME/*.jpg beside boxes.txt."""
    for number in range(sequences):
        boxes = write_frames(root / f"walk-{number}", frames, number)
        write_boxes(root / f"walk-{number}" / "boxes.txt", boxes, "\t")


def write_coco(root: Path, images: int = 4) -> None:
    """train2017/ and its annotations: two objects an image, one of which is a crowd, and one without a width."""
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    objects = []
    for number in range(images):
        Image.fromarray(photo(PHOTOS[number])[:HEIGHT, :WIDTH]).save(root / "train2017" / f"{number:012d}.jpg")
        for crowd, width in ((0, 30.5), (1, 60.0), (0, 0.0)):
            objects.append(
                {"image_id": number, "bbox": [20.5, 10.0, width, 40.0], "iscrowd": crowd, "id": len(objects)}
            )
    pictures = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in range(images)]
    content = {"images": pictures, "annotations": objects}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def write_masks(root: Path, images: int = 8) -> None:
    """images/ and masks/ of two classes: each mask shows two separate parts of 'thing'."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(images):
        Image.fromarray(photo(PHOTOS[number % 4])[:HEIGHT, :WIDTH]).save(root / "images" / f"{number}.png")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[10:40, 20 + number : 60] = 1
        mask[50:90, 70:100] = 1
        mask[60:64, 5:9] = 1
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("background\nthing\n")
