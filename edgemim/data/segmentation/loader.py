"""Batches of crops and their masks in keyed order, for a whole run."""

from __future__ import annotations

from functools import partial
from typing import Unpack

import numpy as np
import torch

from edgemim.data.segmentation.folder import SegmentationFolder
from edgemim.data.segmentation.transforms import KeyedPairTransform
from edgemim.data.stream import Batch, BatchStream, StreamOptions, TrainingSamples, training_stream

Pair = tuple[np.ndarray, np.ndarray]


def build_pair_loader(
    folder: SegmentationFolder, transform: KeyedPairTransform, *, seed: int, **options: Unpack[StreamOptions]
) -> BatchStream:
    """All micro-batches of one rank for a whole run; as `edgemim.data.loader.build_loader`, but `labels` are masks.

    `Batch.labels` is uint8 [b, s, s]. An unreadable image is replaced by another one and reported; a mask that is at
    fault is the user's to correct: iterating raises UserError.
    """
    crop = partial(_crop, transform)
    samples = TrainingSamples(len(folder), seed, folder.root, read=folder.read, transform=crop, collect=_collect)
    return training_stream(samples, **options)


def _crop(transform: KeyedPairTransform, pair: Pair, key: int) -> Pair:
    return transform(*pair, key)


def _collect(crops: list[Pair], shown: list[int], keys: list[int], skipped: list[tuple[str, str]]) -> Batch:
    return Batch(
        images=torch.from_numpy(np.stack([image for image, _ in crops])),
        labels=torch.from_numpy(np.stack([mask for _, mask in crops])),
        indices=torch.tensor(shown, dtype=torch.int64),
        keys=torch.tensor(keys, dtype=torch.int64),
        skipped=skipped,
    )
