"""Which sample comes when, and with which randomness: a pure function of seed, epoch and index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from edgemim.errors import UserError


def sample_key(seed: int, epoch: int, index: int, purpose: str = "") -> int:
    """A 63-bit key: BLAKE2b of the four. It is the only source of a sample's randomness.

    Nothing about workers, ranks or restarts enters it, so none of them can change an augmentation or a mask.
    """
    text = f"{seed}/{epoch}/{index}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """One permutation of range(n), int64 [n], for an epoch.

    It sorts raw Philox words: NumPy keeps a bit generator's stream for ever, but not that of
    `Generator.permutation` (NEP 19), and a run must resume after an upgrade.
    """
    return _shuffled(n, seed, epoch, "order")[0]


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """n places for an epoch of n images, int64 [n], of which every class has as many (or one more).

    A class's images are gone through in keyed orders, one after another: the images of a small class are shown equally
    often, up to one time, and of a large class each epoch shows other ones. Place index + k·n is the k-th repetition
    of an image, so that repetitions have keys of their own. A pure function of labels, seed and epoch.

    Args:
        labels: int [n], classes of the images, all >= 0.
    """
    n = len(labels)
    classes, counts = np.unique(labels, return_counts=True)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    share, extra = divmod(n, len(classes))
    ranks = np.argsort(_shuffled(len(classes), seed, epoch, "extra")[0])
    places = []
    for label, own, rank in zip(classes.tolist(), members, ranks.tolist(), strict=True):
        wanted = share + (rank < extra)
        rounds = _shuffled(len(own), seed, epoch, f"class {label}", rounds=-(-wanted // len(own)))
        repeated = own[rounds] + n * np.arange(len(rounds))[:, None]
        places.append(repeated.ravel()[:wanted])
    return np.concatenate(places)[epoch_order(n, seed, epoch)]


def _shuffled(n: int, seed: int, epoch: int, purpose: str, rounds: int = 1) -> np.ndarray:
    """Keyed permutations of range(n), int64 [rounds, n]."""
    words = np.random.Philox(key=sample_key(seed, epoch, n, purpose)).random_raw(rounds * n)
    return np.argsort(words.reshape(rounds, n), axis=1, kind="stable")


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole global batches in an epoch of `n` images. Raises UserError if there is not one."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if batch_size > n:
        raise UserError(f"batch_size {batch_size} is larger than the data ({n} images); set it to {n} or less")
    return n // batch_size


class StepSampler:
    """Micro-batches of one rank, as lists of (epoch, index), for the steps [start_step, total_steps).

    Step s takes positions [k·B, (k+1)·B) of its epoch's order, k = s mod steps_per_epoch; the rest of an epoch that
    fills no batch is dropped. Rank r of W takes every W-th of them from the r-th on, split into `accumulate`
    micro-batches. So the union over ranks does not depend on W, and the position is one integer, the step.

    With `labels`, each epoch is the class-balanced one of `balanced_order` instead.

    Raises UserError if the batch is larger than the data or does not divide evenly, or if an image has no label.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        seed: int,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        labels: np.ndarray | None = None,
    ) -> None:
        self.labels = labels
        if labels is not None and (len(labels) != n or labels.min(initial=0) < 0):
            raise UserError(
                "class-balanced sampling needs a label for every image; give labelled images or leave it out"
            )
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.start_step, self.total_steps = start_step, total_steps
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.steps_per_epoch = steps_per_epoch(n, batch_size)
        parts = world * accumulate
        if batch_size % parts:
            # Uneven parts would weigh samples unevenly in the averaged gradient.
            raise UserError(
                f"batch_size {batch_size} does not divide into {world} process(es) × {accumulate} accumulation step(s); "
                f"use a multiple of {parts}"
            )

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, order_epoch = np.empty(0, np.int64), -1
        for step in range(self.start_step, self.total_steps):
            epoch, k = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
            mine = order[k * self.batch_size : (k + 1) * self.batch_size][self.rank :: self.world].tolist()
            size = len(mine) // self.accumulate
            for micro in range(self.accumulate):
                yield [(epoch, index) for index in mine[micro * size : (micro + 1) * size]]

    def _order(self, epoch: int) -> np.ndarray:
        if self.labels is not None:
            return balanced_order(self.labels, self.seed, epoch)
        return epoch_order(self.n, self.seed, epoch)
