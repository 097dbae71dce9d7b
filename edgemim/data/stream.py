"""A stream of batches for a whole run: keyed order, unreadable images replaced, workers watched; whatever a sample is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, Required, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgemim.data.order import StepSampler, sample_key
from edgemim.data.workers import POLL_S, start_worker, watched
from edgemim.edge.images import ImageError
from edgemim.errors import UserError

_TRIES = 100

Image = TypeVar("Image")
Crop = TypeVar("Crop")
Place = tuple[int, int]
"""Epoch and index of a sample: what its key is made of. Index + k·n is the k-th repetition of image index of n."""


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


class StreamOptions(TypedDict, total=False):
    """What a stream of training batches takes; `batch_size` is global (over ranks and accumulation)."""

    batch_size: Required[int]
    total_steps: Required[int]
    start_step: int
    rank: int
    world: int
    accumulate: int
    workers: int
    timeout_s: float
    pin_memory: bool


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


def training_stream(
    samples: TrainingSamples, labels: np.ndarray | None = None, **options: Unpack[StreamOptions]
) -> BatchStream:
    """All micro-batches of one rank for a whole run: one loader, so that memory does not grow with epochs.

    With `labels` (int [n]) every class comes as often as every other.

    Raises UserError if the batch does not fit the data; iterating raises UserError after 100 unreadable images in a
    row, WorkerError when a worker dies or gives nothing for `timeout_s` (180) seconds.
    """
    sampler = StepSampler(
        samples.count,
        batch_size=options["batch_size"],
        seed=samples.seed,
        total_steps=options["total_steps"],
        start_step=options.get("start_step", 0),
        rank=options.get("rank", 0),
        world=options.get("world", 1),
        accumulate=options.get("accumulate", 1),
        labels=labels,
    )
    loader = data_loader(samples, sampler, options.get("workers", 0), options.get("pin_memory", False))
    return BatchStream(loader, options.get("timeout_s", 180.0))


class TrainingSamples(Dataset, Generic[Image, Crop]):
    """Reads lists of places into batches; what cannot be read is replaced by another, chosen by the place's key.

    `read` gives the image of an index (raising ImageError or OSError), `transform` the crop that the key of the place
    makes of it, `collect` a batch of crops with their own indices, the keys, and (path, reason) of what was left out.
    `root` is named in messages.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        root: object,
        *,
        read: Callable[[int], Image],
        transform: Callable[[Image, int], Crop],
        collect: Callable[[list[Crop], list[int], list[int], list[tuple[str, str]]], Batch],
    ) -> None:
        self.count, self.seed, self.root = count, seed, root
        self._read, self._transform, self._collect = read, transform, collect

    def __getitems__(self, places: list[Place]) -> Batch | UserError:
        skipped: list[tuple[str, str]] = []
        crops: list[Crop] = []
        shown: list[int] = []
        keys = [sample_key(self.seed, epoch, index) for epoch, index in places]
        try:
            for place, key in zip(places, keys, strict=True):
                index, image = self._readable(*place, skipped)
                crops.append(self._transform(image, key))
                shown.append(index)
        except UserError as error:  # handed over as a value, see BatchStream
            return error
        return self._collect(crops, shown, keys, skipped)

    def _readable(self, epoch: int, index: int, skipped: list[tuple[str, str]]) -> tuple[int, Image]:
        for attempt in range(_TRIES):
            index %= self.count  # a repetition's place is beyond the images
            try:
                return index, self._read(index)
            except (ImageError, OSError) as error:
                skipped.append(fault(error))
            index = sample_key(self.seed, epoch, index, f"replace {attempt}")
        path, reason = skipped[-1]
        raise UserError(
            f"{_TRIES} images in a row could not be read, the last of them {path}: {reason}; "
            f"`edgemim data check {self.root}` lists them all"
        )


def fault(error: ImageError | OSError) -> tuple[str, str]:
    """(path, reason) of an image that cannot be read."""
    if isinstance(error, ImageError):
        return error.name, error.reason
    return str(error.filename or ""), error.strerror or str(error)


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
