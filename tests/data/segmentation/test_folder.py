"""Pairs are held out, checked and counted; what is wrong with a mask is found before a run begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_segmentation import HEIGHT, LABELS, WIDTH, small_set, write_pairs

from edgemim.data.segmentation.folder import SegmentationData, check_classes, open_held_out
from edgemim.edge.images import ImageError
from edgemim.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "set", 8, seed=3)
    (tmp_path / "set" / "classes.txt").write_text("\n".join(LABELS))
    return tmp_path / "set"


def test_the_sets_own_split_is_taken(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = SegmentationData.open(small_set(tmp_path_factory.getbasetemp() / "small_set"))
    assert (len(data.train), len(data.val), data.layout) == (24, 6, "pairs")
    image, mask = data.val.read(2)
    assert image.shape == (HEIGHT, WIDTH, 3) and mask.shape == (HEIGHT, WIDTH)
    assert {path.parent.parent.name for path, _ in data.val.pairs} == {"val"}


def test_a_share_is_held_out_by_the_seed(root: Path) -> None:
    first = SegmentationData.open(root, val_share=0.25, seed=1)
    again = SegmentationData.open(root, val_share=0.25, seed=1)
    other = SegmentationData.open(root, val_share=0.25, seed=2)
    assert (len(first.train), len(first.val)) == (6, 2)
    assert first.val.pairs == again.val.pairs != other.val.pairs
    assert not set(first.train.pairs) & set(first.val.pairs)
    assert first.train.fingerprint == again.train.fingerprint != other.train.fingerprint
    with pytest.raises(UserError, match="cannot be held out; give --val DIR"):
        SegmentationData.open(root, val_share=0.01)


def test_pixels_are_counted_by_class(root: Path) -> None:
    folder = open_held_out(root, LABELS)
    expected = np.zeros(3, np.int64)
    for i in range(len(folder)):
        for label in range(3):
            expected[label] += int((folder.mask(i) == label).sum())
    counted = folder.count_pixels()
    assert (counted == expected).all() and (counted > 0).all()
    assert counted.sum() == len(folder) * (HEIGHT - 4) * (WIDTH - 4)


def test_other_classes_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"dark, middle, bright.*are not those of the model"):
        open_held_out(root, ("a", "b", "c"))


def change(root: Path, number: int, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(root / "masks" / f"{number:03d}.png")


def test_a_mask_of_another_size_is_named_with_both_sizes(root: Path) -> None:
    change(root, 5, np.zeros((HEIGHT, WIDTH - 1), np.uint8))
    folder = open_held_out(root, LABELS)
    for check in (folder.count_pixels, lambda: folder.read(5)):
        with pytest.raises(
            UserError, match=rf"masks/005\.png has {WIDTH - 1}×{HEIGHT} .*005\.jpg has {WIDTH}×{HEIGHT}"
        ):
            check()


def test_a_value_beyond_the_classes_is_found_while_counting(root: Path) -> None:
    change(root, 2, np.full((HEIGHT, WIDTH), 3, np.uint8))
    with pytest.raises(UserError, match=r"masks/002\.png holds the value 3"):
        open_held_out(root, LABELS).count_pixels()


def test_a_turned_photo_is_as_large_as_it_is_shown(root: Path) -> None:
    """A camera's EXIF flag: the pixels lie on their side, the mask was drawn on the upright picture."""
    path = root / "images" / "000.jpg"
    with Image.open(path) as image:
        lying = image.transpose(Image.Transpose.ROTATE_90)
        exif = lying.getexif()
        exif[0x0112] = 6
        lying.save(path, exif=exif)
    folder = open_held_out(root, LABELS)
    folder.count_pixels()
    image, mask = folder.read(0)
    assert image.shape[:2] == mask.shape


def test_a_damaged_image_is_no_reason_to_stop_counting(root: Path) -> None:
    (root / "images" / "001.jpg").write_bytes(b"no picture")
    folder = open_held_out(root, LABELS)
    folder.count_pixels()
    with pytest.raises(ImageError):
        folder.read(1)


def test_empty_classes_are_named_and_one_class_alone_is_refused(tmp_path: Path) -> None:
    assert check_classes(np.array([5, 0, 7]), LABELS, tmp_path) == ["middle"]
    with pytest.raises(UserError, match="hold only the class 'bright'; there is nothing to tell apart"):
        check_classes(np.array([0, 0, 7]), LABELS, tmp_path)
    with pytest.raises(UserError, match="no pixel of any class"):
        check_classes(np.array([0, 0, 0]), LABELS, tmp_path)
