"""Batches of crops and their masks in keyed order, for a whole run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from edgemim.data.loader import Batch, BatchStream, data_loader
from edgemim.data.order import StepSampler, sample_key
from edgemim.data.segmentation.folder import SegmentationFolder
from edgemim.data.segmentation.transforms import KeyedPairTransform
from edgemim.edge.images import ImageError
from edgemim.errors import UserError

_TRIES = 100


def build_pair_loader(
    folder: SegmentationFolder,
    transform: KeyedPairTransform,
    *,
    batch_size: int,
    seed: int,
    total_steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    workers: int = 0,
    timeout_s: float = 180.0,
    pin_memory: bool = False,
) -> BatchStream:
    """All micro-batches of one rank for a whole run; as `edgemim.data.loader.build_loader`, but `labels` are masks.

    `Batch.labels` is uint8 [b, s, s]. An unreadable image is replaced by another one and reported; a mask that is at
    fault is the user's to correct: iterating raises UserError.
    """
    sampler = StepSampler(
        len(folder),
        batch_size=batch_size,
        seed=seed,
        total_steps=total_steps,
        start_step=start_step,
        rank=rank,
        world=world,
        accumulate=accumulate,
    )
    return BatchStream(data_loader(PairSamples(folder, transform, seed), sampler, workers, pin_memory), timeout_s)


class PairSamples(Dataset):
    """Reads lists of (epoch, index) into batches; a bad image is replaced by another, chosen by the place's key."""

    def __init__(self, folder: SegmentationFolder, transform: KeyedPairTransform, seed: int) -> None:
        self.folder, self.transform, self.seed = folder, transform, seed

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> Batch | UserError:
        skipped: list[tuple[str, str]] = []
        keys = [sample_key(self.seed, epoch, index) for epoch, index in places]
        try:
            read = [self._readable(epoch, index, skipped) for epoch, index in places]
        except UserError as error:  # handed over as a value: torch would bury its sentence in a traceback
            return error
        crops = [self.transform(image, mask, key) for (_, image, mask), key in zip(read, keys, strict=True)]
        return Batch(
            images=torch.from_numpy(np.stack([image for image, _ in crops])),
            labels=torch.from_numpy(np.stack([mask for _, mask in crops])),
            indices=torch.tensor([index for index, _, _ in read], dtype=torch.int64),
            keys=torch.tensor(keys, dtype=torch.int64),
            skipped=skipped,
        )

    def _readable(self, epoch: int, index: int, skipped: list[tuple[str, str]]) -> tuple[int, np.ndarray, np.ndarray]:
        for attempt in range(_TRIES):
            try:
                return index, *self.folder.read(index)
            except ImageError as error:
                skipped.append((error.name, error.reason))
            index = sample_key(self.seed, epoch, index, f"replace {attempt}") % len(self.folder)
        path, reason = skipped[-1]
        raise UserError(f"{_TRIES} images in a row could not be read, the last of them {path}: {reason}")
