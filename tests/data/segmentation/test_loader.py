"""Batches of pairs: the same whoever reads them, damaged images replaced, faulty masks refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_segmentation import HEIGHT, LABELS, WIDTH, write_pairs

torch = pytest.importorskip("torch")

from edgemim.data.segmentation.folder import SegmentationFolder, open_held_out  # noqa: E402
from edgemim.data.segmentation.loader import build_pair_loader  # noqa: E402
from edgemim.data.segmentation.transforms import SegmentationTransform  # noqa: E402
from edgemim.errors import UserError  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> SegmentationFolder:
    write_pairs(tmp_path, 10, seed=4)
    (tmp_path / "classes.txt").write_text("\n".join(LABELS))
    return open_held_out(tmp_path, LABELS)


def batches_of(folder: SegmentationFolder, **options: int) -> list:
    transform = SegmentationTransform().build(32, 48)
    settings = {"batch_size": 4, "seed": 5, "total_steps": 4, **options}
    return list(build_pair_loader(folder, transform, **settings))  # pyright: ignore[reportArgumentType]


def test_shapes_and_types(folder: SegmentationFolder) -> None:
    batches = batches_of(folder)
    assert len(batches) == 4
    for batch in batches:
        assert batch.images.shape == (4, 3, 32, 32) and batch.images.dtype == torch.uint8
        assert batch.labels.shape == (4, 32, 32) and batch.labels.dtype == torch.uint8
        assert set(batch.labels.unique().tolist()) <= {0, 1, 2, 255}


def test_workers_ranks_and_restarts_change_nothing(folder: SegmentationFolder) -> None:
    alone = batches_of(folder)
    for other in (batches_of(folder, workers=2), batches_of(folder, start_step=2)):
        for a, b in zip(alone[-len(other) :], other, strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.keys, b.keys)
    ranks = [batches_of(folder, rank=rank, world=2) for rank in range(2)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.labels[0::2], first.labels) and torch.equal(whole.labels[1::2], second.labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_replaced_and_reported(folder: SegmentationFolder, workers: int) -> None:
    folder.path(3).write_bytes(b"no picture")
    batches = batches_of(folder, workers=workers)
    assert all(len(batch) == 4 for batch in batches)
    skipped = [path for batch in batches for path, _ in batch.skipped]
    assert skipped and set(skipped) == {str(folder.path(3))}
    assert 3 not in torch.cat([batch.indices for batch in batches])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_faulty_mask_is_the_users_to_correct(folder: SegmentationFolder, workers: int) -> None:
    for _, mask in folder.pairs:
        Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint8)).save(mask)
    with pytest.raises(UserError, match=r"masks/\d+\.png holds the value 9"):
        batches_of(folder, workers=workers)


def test_no_image_readable(folder: SegmentationFolder) -> None:
    for image, _ in folder.pairs:
        image.write_bytes(b"")
    with pytest.raises(UserError, match="100 images in a row could not be read"):
        batches_of(folder)
