"""What torchrun's restarts need: the living find each other, and nobody else's folder is taken."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from edgemim.training.distributed import agreed_name


def attempt(store: dist.Store, size: int, late_s: float) -> set[str]:
    """One attempt of `size` ranks, the last of which comes late; the names that they agree on."""

    def rank(number: int) -> str:
        if number == size - 1:
            time.sleep(late_s)
        return agreed_name(store, number, size)

    with ThreadPoolExecutor(size) as pool:
        return set(pool.map(rank, range(size)))


def test_each_attempt_on_one_store_agrees_on_a_name_of_its_own() -> None:
    store = dist.HashStore()
    names = [attempt(store, 3, late_s) for late_s in (0.0, 0.2, 0.0, 0.1)]
    assert all(len(found) == 1 for found in names)
    assert len(set.union(*names)) == len(names)


def test_a_late_rank_is_waited_for_although_a_dead_one_left_its_token() -> None:
    """The fault that made every fourth restart hang or fail: rank 0 met the address of the dead rank 1."""
    store = dist.HashStore()
    old = attempt(store, 2, 0.0)
    early: list[str] = []
    first = threading.Thread(target=lambda: early.append(agreed_name(store, 0, 2)))
    first.start()
    time.sleep(0.3)
    assert not early, "agreed with a dead process"
    late = agreed_name(store, 1, 2)
    first.join(10)
    assert early == [late]
    assert late not in old
