"""Keyed pairs: the same whatever the workers, ranks and restarts; what cannot be used is replaced and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from tracking_sets import HEIGHT, WIDTH, write_folder  # noqa: E402

from edgemim.data.tracking.config import PairsConfig, PairSourceConfig  # noqa: E402
from edgemim.data.tracking.loader import build_tracking_loader, held_out_batches  # noqa: E402
from edgemim.data.tracking.opening import open_tracking_data  # noqa: E402
from edgemim.data.tracking.pairs import PairBatch, Shot  # noqa: E402
from edgemim.data.tracking.sources import Mixture, StillSource  # noqa: E402
from edgemim.data.tracking.transforms import PairTransform  # noqa: E402
from edgemim.edge.tracking.boxes import Box  # noqa: E402
from edgemim.errors import UserError  # noqa: E402

torch.set_num_threads(1)
TRANSFORM = PairTransform().build((32, 64), (2.0, 4.0))


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("walks")
    write_folder(root)
    return root


@pytest.fixture(scope="module")
def mixture(walks: Path) -> Mixture:
    config = PairsConfig(sources=(PairSourceConfig(root=walks),))
    return open_tracking_data(config, None, val_share=0.3, seed=0).train


def batches(mixture: Mixture, **changes: Any) -> list[PairBatch]:
    options: dict[str, Any] = {"pairs_per_epoch": 10, "seed": 5, "batch_size": 4, "total_steps": 5}
    return cast(list[PairBatch], list(build_tracking_loader(mixture, TRANSFORM, **(options | changes))))


def flat(found: list[PairBatch]) -> dict[tuple[int, int], tuple[Tensor, ...]]:
    """All pairs by index and key."""
    return {
        (int(index), int(key)): (template, search, first, second)
        for batch in found
        for template, search, first, second, index, key in zip(
            batch.template, batch.search, batch.template_box, batch.search_box, batch.indices, batch.keys, strict=True
        )
    }


def same(first: dict[Any, tuple[Tensor, ...]], second: dict[Any, tuple[Tensor, ...]]) -> bool:
    return first.keys() == second.keys() and all(
        all(torch.equal(a, b) for a, b in zip(first[key], second[key], strict=True)) for key in first
    )


def test_an_epoch_is_new_pairs_of_the_same_number(mixture: Mixture) -> None:
    found = batches(mixture)
    assert len(found) == 5 and [len(batch) for batch in found] == [4] * 5
    assert len(flat(found)) == 20, "each pair of each epoch has a key of its own"
    first = {int(index) for batch in found[:2] for index in batch.indices}
    assert len(first) == 8 and first <= set(range(10))


def test_workers_ranks_and_parts_change_nothing(mixture: Mixture) -> None:
    whole = flat(batches(mixture))
    ranks = [batch for rank in (0, 1) for batch in batches(mixture, rank=rank, world=2)]
    assert same(whole, flat(ranks))
    assert same(whole, flat(batches(mixture, accumulate=2)))
    assert same(whole, flat(batches(mixture, workers=2)))


def test_a_later_start_is_the_same_rest(mixture: Mixture) -> None:
    whole, rest = batches(mixture), batches(mixture, start_step=3)
    for one, two in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.search, two.search) and torch.equal(one.labels.search_box, two.labels.search_box)


def test_held_out_pairs_stay_the_same(mixture: Mixture) -> None:
    transform = PairTransform().without_chance().build((32, 64), (2.0, 4.0))
    sizes = [4, 3]
    one, other = (flat(list(held_out_batches(mixture, transform, count=7, batch_size=size, seed=1))) for size in sizes)
    assert len(one) == 7 and same(one, other)


def test_a_picture_that_cannot_be_read_is_replaced_and_named(walks: Path) -> None:
    broken = walks / "broken.jpg"
    broken.write_bytes(b"no picture")
    whole = walks / "walk-0" / "00000001.jpg"
    source = StillSource("s", [Shot(broken, Box(3, 3, 20, 20)), Shot(whole, Box(9, 9, 30, 30))])
    found = batches(Mixture([source], [1]))
    broken.unlink()
    assert all(len(batch) == 4 for batch in found)
    paths = {path for batch in found for path, _ in batch.skipped}
    assert paths == {str(broken)}


def test_a_box_outside_its_picture_is_named(walks: Path) -> None:
    path = walks / "walk-0" / "00000001.jpg"
    good, outside = Box(9, 9, 30, 30), Box(WIDTH + 300, HEIGHT + 300, 10, 10)
    found = batches(Mixture([StillSource("s", [Shot(path, good), Shot(path, outside)])], [1]))
    assert any("lies outside" in reason for batch in found for _, reason in batch.skipped)
    with pytest.raises(UserError, match=r"00000001\.jpg: the box \[428\.0, 396\.0, 10\.0, 10\.0\] lies outside"):
        batches(Mixture([StillSource("s", [Shot(path, outside)])], [1]))
