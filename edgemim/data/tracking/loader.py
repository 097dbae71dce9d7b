"""Batches of pairs for a whole run, and the fixed pairs that are measured on; each follows from its key."""

from __future__ import annotations

import random
from collections.abc import Generator
from functools import partial
from typing import Any, Unpack, cast

import cv2
import numpy as np

from edgemim.data.order import sample_key
from edgemim.data.stream import BatchStream, StreamOptions, TrainingSamples, fault, training_stream
from edgemim.data.tracking.pairs import PairBatch, PairCrops, collect_pairs
from edgemim.data.tracking.sources import Mixture
from edgemim.data.tracking.transforms import KeyedPairTransform
from edgemim.edge.images import ImageError, load_image
from edgemim.errors import UserError

_TRIES = 100

Drawn = tuple[PairCrops, list[tuple[str, str]]]
"""A sample, and (path, reason) of what could not be read on the way to it."""


def build_tracking_loader(
    mixture: Mixture,
    transform: KeyedPairTransform,
    *,
    pairs_per_epoch: int,
    seed: int,
    **options: Unpack[StreamOptions],
) -> BatchStream:
    """All micro-batches of one rank for a whole run, as `PairBatch`.

    An epoch is `pairs_per_epoch` draws. Which pair the n-th of an epoch is, and all of its jitter, follows from
    (seed, epoch, n). Where a picture cannot be read another pair is drawn by the same key, and it is reported; iterating
    raises UserError after 100 in a row. Options are those of `edgemim.data.stream.training_stream`.
    """
    # Readers are processes, often forked: a pool of threads that was forked with them would hang.
    cv2.setNumThreads(1)
    samples = TrainingSamples(
        pairs_per_epoch,
        seed,
        "tracking pairs",
        read=_number,
        transform=partial(_draw, mixture, transform),
        collect=cast(Any, _collect),
    )
    return training_stream(samples, **options)


def held_out_batches(
    mixture: Mixture, transform: KeyedPairTransform, *, count: int, batch_size: int, seed: int
) -> Generator[PairBatch]:
    """`count` pairs that are the same at every call, in batches of up to `batch_size`. Raises UserError."""
    for start in range(0, count, batch_size):
        numbers = list(range(start, min(start + batch_size, count)))
        keys = [sample_key(seed, 0, number, "held-out pair") for number in numbers]
        yield _collect(
            [_draw(mixture, transform, n, key) for n, key in zip(numbers, keys, strict=True)], numbers, keys, []
        )


def _number(index: int) -> int:
    return index


def _draw(mixture: Mixture, transform: KeyedPairTransform, number: int, key: int) -> Drawn:
    del number  # it is in the key
    rng = random.Random(key)
    skipped: list[tuple[str, str]] = []
    for _ in range(_TRIES):
        try:
            pair = mixture.draw(rng)
            template = load_image(pair.template.path)
            still = pair.search.path == pair.template.path
            search = template if still else load_image(pair.search.path)
        except (ImageError, OSError) as error:
            skipped.append(fault(error))
            continue
        crops = transform((template, pair.template.box), (search, pair.search.box), rng, still=still)
        if crops is not None:
            return crops, skipped
        skipped.append((str(pair.search.path), f"the box {_rounded(pair.search.box)} lies outside the picture"))
    path, reason = skipped[-1]
    raise UserError(f"{_TRIES} pairs in a row could not be made, the last of them of {path}: {reason}")


def _rounded(box: tuple[float, ...]) -> list[float]:
    return [round(float(value), 1) for value in np.array(box)]


def _collect(drawn: list[Drawn], shown: list[int], keys: list[int], skipped: list[tuple[str, str]]) -> PairBatch:
    crops = [crop for crop, _ in drawn]
    return collect_pairs(crops, shown, keys, [*skipped, *(fault for _, faults in drawn for fault in faults)])
