"""Batches of images in keyed order, from worker processes that can die, hang or meet bad files without hurting a run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgemim.data.folders import ImageFolder
from edgemim.data.order import StepSampler, epoch_order, sample_key, steps_per_epoch
from edgemim.data.transforms import EvalTransform, KeyedTransform
from edgemim.data.workers import POLL_S, start_worker, watched
from edgemim.edge.images import ImageError, Preprocessing, load_image
from edgemim.errors import UserError

__all__ = [
    "Batch",
    "BatchStream",
    "StepSampler",
    "build_loader",
    "data_loader",
    "epoch_order",
    "eval_loader",
    "sample_key",
    "steps_per_epoch",
]

MAX_PIXELS = 128_000_000
_TRIES = 100


@dataclass
class Batch:
    """A batch as it leaves the loader; pixels stay uint8 until the device normalises them.

    `indices` say which image was shown (a replacement's own index); `keys` belong to the place in the epoch and stay.
    """

    images: Tensor
    """uint8 [b, 3, s, s]."""
    labels: Tensor
    """int64 [b], -1 where there is none."""
    indices: Tensor
    """int64 [b], index in the folder."""
    keys: Tensor
    """int64 [b], the source of each sample's randomness."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of each file that could not be read."""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from where a copy to the GPU does not block."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        moved = (change(tensor) for tensor in (self.images, self.labels, self.indices, self.keys))
        return Batch(*moved, skipped=self.skipped)


class BatchStream:
    """An iterable of batches with a known length; each iteration starts anew at the first."""

    def __init__(self, loader: DataLoader, timeout_s: float) -> None:
        self._loader = loader
        self._timeout_s = timeout_s

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Generator[Batch]:
        # Closed here and not by the garbage collector, which may take the workers' queues apart first.
        with closing(watched(self._loader, self._timeout_s)) as batches:
            for batch in batches:
                # A worker hands an error over as a value: torch would bury its sentence in a traceback.
                if isinstance(batch, UserError):
                    raise batch
                yield batch


def build_loader(
    folder: ImageFolder,
    transform: KeyedTransform,
    *,
    batch_size: int,
    seed: int,
    total_steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    timeout_s: float = 180.0,
    pin_memory: bool = False,
) -> BatchStream:
    """All micro-batches of one rank for a whole run: one loader, so that memory does not grow with epochs.

    `batch_size` is global (over ranks and accumulation). An unreadable image is replaced by another one drawn by its
    key, and reported. Raises UserError if the batch does not fit the data; iterating raises UserError after 100
    unreadable images in a row, WorkerError when a worker dies or gives nothing for `timeout_s` seconds.
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
    samples = TrainingSamples(folder, transform, seed, max_pixels)
    return BatchStream(data_loader(samples, sampler, workers, pin_memory), timeout_s)


def eval_loader(
    folder: ImageFolder,
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


class TrainingSamples(Dataset):
    """Reads lists of (epoch, index) into batches; a bad image is replaced by another, chosen by the place's key."""

    def __init__(self, folder: ImageFolder, transform: KeyedTransform, seed: int, max_pixels: int) -> None:
        self.folder, self.transform = folder, transform
        self.seed, self.max_pixels = seed, max_pixels

    def __getitems__(self, places: list[tuple[int, int]]) -> Batch | UserError:
        skipped: list[tuple[str, str]] = []
        images, shown = [], []
        keys = [sample_key(self.seed, epoch, index) for epoch, index in places]
        for (epoch, index), key in zip(places, keys, strict=True):
            for attempt in range(_TRIES):
                image = _read(self.folder, index, self.max_pixels, skipped)
                if image is not None:
                    break
                index = sample_key(self.seed, epoch, index, f"replace {attempt}") % len(self.folder)
            else:
                path, reason = skipped[-1]
                return UserError(
                    f"{_TRIES} images in a row could not be read, the last of them {path}: {reason}; "
                    f"`edgemim data check {self.folder.root}` lists them all"
                )
            images.append(self.transform(image, key))
            shown.append(index)
        return _collect(self.folder, images, shown, keys, skipped)


class EvaluationSamples(Dataset):
    """Reads lists of indices into batches without the unreadable images."""

    def __init__(self, folder: ImageFolder, transform: EvalTransform, max_pixels: int) -> None:
        self.folder, self.transform, self.max_pixels = folder, transform, max_pixels

    def __getitems__(self, indices: list[int]) -> Batch:
        skipped: list[tuple[str, str]] = []
        images, shown = [], []
        for index in indices:
            image = _read(self.folder, index, self.max_pixels, skipped)
            if image is not None:
                images.append(self.transform(image))
                shown.append(index)
        if not images:
            size = self.transform.image_size
            return _collect(self.folder, np.empty((0, 3, size, size), np.uint8), [], [], skipped)
        return _collect(self.folder, images, shown, [sample_key(0, 0, index, "evaluate") for index in shown], skipped)


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


def _read(folder: ImageFolder, index: int, max_pixels: int, skipped: list[tuple[str, str]]) -> np.ndarray | None:
    path = folder.path(index)
    try:
        return load_image(path, max_pixels=max_pixels)
    except ImageError as error:
        skipped.append((str(path), error.reason))
    except OSError as error:
        skipped.append((str(path), error.strerror or str(error)))
    return None


def _collect(
    folder: ImageFolder,
    images: Sequence[np.ndarray] | np.ndarray,
    shown: list[int],
    keys: list[int],
    skipped: list[tuple[str, str]],
) -> Batch:
    return Batch(
        images=torch.from_numpy(np.stack(images) if isinstance(images, list) else np.asarray(images)),
        labels=torch.tensor([folder.label(index) for index in shown], dtype=torch.int64),
        indices=torch.tensor(shown, dtype=torch.int64),
        keys=torch.tensor(keys, dtype=torch.int64),
        skipped=skipped,
    )


def data_loader(samples: Dataset, batches: Iterable, workers: int, pin_memory: bool) -> DataLoader:
    """torch's loader over ready-made batches, its workers started as `BatchStream` watches them."""
    return DataLoader(
        samples,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        timeout=POLL_S if workers else 0,
        worker_init_fn=start_worker,
        # Its own generator: the loader's seed draw must not move the one that DropPath uses.
        generator=torch.Generator(),
    )


def _as_is(batch: Any) -> Any:
    return batch
