"""Batches of images in keyed order, from worker processes that can die, hang or meet bad files without hurting a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Unpack

import numpy as np
import torch
from torch.utils.data import Dataset

from edgemim.data.image_set import ImageSet
from edgemim.data.order import StepSampler, epoch_order, sample_key, steps_per_epoch
from edgemim.data.stream import (
    Batch,
    BatchStream,
    StreamOptions,
    TrainingSamples,
    data_loader,
    fault,
    training_stream,
)
from edgemim.data.transforms import EvalTransform, KeyedTransform
from edgemim.edge.images import ImageError, Preprocessing
from edgemim.errors import UserError

__all__ = [
    "Batch",
    "BatchStream",
    "StepSampler",
    "build_loader",
    "epoch_order",
    "eval_loader",
    "sample_key",
    "steps_per_epoch",
]

MAX_PIXELS = 128_000_000


def build_loader(
    folder: ImageSet,
    transform: KeyedTransform,
    *,
    seed: int,
    max_pixels: int = MAX_PIXELS,
    class_balanced: bool = False,
    **options: Unpack[StreamOptions],
) -> BatchStream:
    """All micro-batches of one rank for a whole run.

    An unreadable image is replaced by another one drawn by its key, and reported. With `class_balanced` every class
    is shown as often as every other, small ones repeated with other augmentations. Options and errors are those of
    `edgemim.data.stream.training_stream`.
    """
    samples = TrainingSamples(
        len(folder),
        seed,
        folder.root,
        read=partial(folder.image, max_pixels=max_pixels),
        transform=transform,
        collect=partial(_collect, folder),
    )
    return training_stream(samples, folder.labels if class_balanced else None, **options)


def eval_loader(
    folder: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    max_pixels: int = MAX_PIXELS,
    timeout_s: float = 180.0,
    pin_memory: bool = False,
) -> Iterable[Batch]:
    """The images in order (all, or those of `indices`), once, the last batch as short as it comes.

    Unreadable images are left out and reported in the next batch that has images. Raises UserError if none is readable.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    chosen = np.arange(len(folder)) if indices is None else np.asarray(indices, dtype=np.int64)
    chunks = [chosen[start : start + batch_size].tolist() for start in range(0, len(chosen), batch_size)]
    samples = EvaluationSamples(folder, EvalTransform(preprocessing), max_pixels)
    return _WithoutEmpty(BatchStream(data_loader(samples, chunks, workers, pin_memory), timeout_s))


class EvaluationSamples(Dataset):
    """Reads lists of indices into batches without the unreadable images."""

    def __init__(self, folder: ImageSet, transform: EvalTransform, max_pixels: int) -> None:
        self.folder, self.transform, self.max_pixels = folder, transform, max_pixels

    def __getitems__(self, indices: list[int]) -> Batch | UserError:
        skipped: list[tuple[str, str]] = []
        images, shown = [], []
        for index in indices:
            try:
                image = self.folder.image(index, self.max_pixels)
            except (ImageError, OSError) as error:
                skipped.append(fault(error))
                continue
            except UserError as error:  # handed over as a value, see BatchStream
                return error
            images.append(self.transform(image))
            shown.append(index)
        keys = [sample_key(0, 0, index, "evaluate") for index in shown]
        return _collect(self.folder, images, shown, keys, skipped)


class _WithoutEmpty:
    """Hands the reports of a batch without images on to a batch that has some."""

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        held: Batch | None = None
        reports: list[tuple[str, str]] = []
        with closing(iter(self._stream)) as batches:
            for batch in batches:
                if not len(batch):
                    reports += batch.skipped
                    continue
                batch.skipped[:0] = reports
                reports = []
                if held is not None:
                    yield held
                held = batch
        if held is None:
            path, reason = reports[0] if reports else ("", "")
            detail = f": {path}: {reason}" if reports else "; choose at least one"
            raise UserError(f"no image could be read for evaluation{detail}")
        held.skipped += reports
        yield held


def _collect(
    folder: ImageSet, images: list[np.ndarray], shown: list[int], keys: list[int], skipped: list[tuple[str, str]]
) -> Batch:
    return Batch(
        images=torch.from_numpy(np.stack(images)) if images else torch.empty(0, dtype=torch.uint8),
        labels=torch.tensor([folder.label(index) for index in shown], dtype=torch.int64),
        indices=torch.tensor(shown, dtype=torch.int64),
        keys=torch.tensor(keys, dtype=torch.int64),
        skipped=skipped,
    )
