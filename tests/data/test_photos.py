import hashlib
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemim.data.photos import PHOTOS, PhotoCropsConfig, load_photo, random_crops, write_photo_crops
from edgemim.errors import MissingLibrary, UserError

SMALL = PhotoCropsConfig(unlabelled_per_photo=5, train_per_photo=3, test_per_photo=4)


@pytest.fixture
def crops_folder(tmp_path: Path) -> Path:
    pytest.importorskip("skimage")
    write_photo_crops(tmp_path / "photos", SMALL)
    return tmp_path / "photos"


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def windows(image: np.ndarray, crop: np.ndarray) -> list[int]:
    """Left edges of all places where the crop occurs exactly in the image, by brute force on its first row."""
    size = len(crop)
    rows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    candidates = np.argwhere((rows[:, :, 0, :] == crop[0]).all(-1))
    return [int(x) for y, x in candidates if np.array_equal(image[y : y + size, x : x + size], crop)]


def test_counts_names_and_size(crops_folder: Path):
    classes = sorted(photo.name for photo in PHOTOS)
    assert len(classes) == 14
    assert len(list((crops_folder / "unlabelled").glob("*.png"))) == 14 * 5
    for part, count in (("train", 3), ("test", 4)):
        assert sorted(path.name for path in (crops_folder / part).iterdir()) == classes
        assert all(len(list(path.glob("*.png"))) == count for path in (crops_folder / part).iterdir())
    image = Image.open(crops_folder / "train" / "cat" / "00000.png")
    assert (image.size, image.mode) == ((64, 64), "L")
    assert all(name in (crops_folder / "CREDITS.txt").read_text() for name in classes)


def test_training_crops_lie_left_of_every_test_crop(crops_folder: Path):
    for photo in PHOTOS[:6]:
        image = load_photo(photo, 512)
        middle = round(image.shape[1] * 0.6)
        for part in ("train", "test"):
            for path in (crops_folder / part / photo.name).glob("*.png"):
                found = windows(image, np.asarray(Image.open(path)))
                assert any(x + 64 <= middle for x in found) if part == "train" else any(x >= middle for x in found)


def test_the_seed_decides_every_byte(crops_folder: Path, tmp_path: Path):
    write_photo_crops(tmp_path / "again", SMALL)
    assert digests(crops_folder) == digests(tmp_path / "again")
    write_photo_crops(tmp_path / "other", SMALL.model_copy(update={"seed": 1}))
    assert digests(crops_folder) != digests(tmp_path / "other")


def test_more_crops_of_one_kind_leave_the_others_alone(crops_folder: Path, tmp_path: Path):
    more = write_photo_crops(tmp_path / "more", SMALL.model_copy(update={"unlabelled_per_photo": 7}))
    assert digests(crops_folder / "train") == digests(more.train)
    assert digests(crops_folder / "test") == digests(more.test)


def test_a_complete_set_is_reused_and_another_one_left_alone(crops_folder: Path):
    before = (crops_folder / "photos.json").stat().st_mtime_ns
    write_photo_crops(crops_folder, SMALL)
    assert (crops_folder / "photos.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another set of images"):
        write_photo_crops(crops_folder, SMALL.model_copy(update={"seed": 5}))


def test_an_interrupted_set_is_never_taken_for_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("skimage")
    monkeypatch.setattr("edgemim.data.photos.credits_text", lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_photo_crops(tmp_path / "photos", SMALL)
    assert not (tmp_path / "photos").exists()
    monkeypatch.undo()
    assert write_photo_crops(tmp_path / "photos", SMALL).train.is_dir()


def test_every_photo_comes_with_the_package(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("skimage")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a photo was asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for photo in PHOTOS:
        image = load_photo(photo, 512)
        assert image.dtype == np.uint8
        assert image.shape[0] <= 512
        assert image.std() > 1


def test_too_large_a_crop_is_refused():
    with pytest.raises(UserError, match="40×30 px holds no crop of 64 px"):
        random_crops(np.zeros((30, 40), np.uint8), 1, 64, np.random.default_rng(0))


def test_without_scikit_image_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingLibrary, match=r"edgemim\[quickstart\]"):
        write_photo_crops(tmp_path / "photos", SMALL)
