"""Keys and order: pure functions of seed, epoch and index, the same for any split into ranks, steps and restarts."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemim.data.order import StepSampler, balanced_order, epoch_order, sample_key, steps_per_epoch
from edgemim.errors import UserError


def test_key_is_the_documented_hash():
    digest = hashlib.blake2b(b"7/3/41/mask", digest_size=8).digest()
    assert sample_key(7, 3, 41, "mask") == int.from_bytes(digest, "little") // 2


@given(
    st.tuples(st.integers(), st.integers(0), st.integers(0)), st.tuples(st.integers(), st.integers(0), st.integers(0))
)
def test_keys_fit_int64_and_differ(one, other):
    assert 0 <= sample_key(*one) < 2**63
    assert (sample_key(*one) == sample_key(*other)) == (one == other)
    assert sample_key(*one, "mask") != sample_key(*one, "crop")


def test_keys_look_uniform():
    keys = np.array([sample_key(0, 0, index) for index in range(20_000)])
    counts = np.bincount(keys >> 59, minlength=16)
    assert len(set(keys.tolist())) == 20_000
    # Chi-square with 15 degrees of freedom: above 44 once in 10,000 for uniform keys; these are fixed, so never flaky.
    assert ((counts - 1250) ** 2 / 1250).sum() < 44


@given(st.integers(1, 500), st.integers(0, 2**40), st.integers(0, 1000))
def test_order_is_a_permutation(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


def test_order_sorts_raw_philox_words():
    """The stream that NumPy promises to keep: a slow spelling of the same definition."""
    words = np.random.Philox(key=sample_key(5, 2, 50, "order")).random_raw(50).tolist()
    assert epoch_order(50, 5, 2).tolist() == sorted(range(50), key=lambda index: words[index])


def test_order_differs_by_seed_and_epoch():
    orders = {tuple(epoch_order(30, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_place_is_equally_likely():
    places = np.array([int(np.flatnonzero(epoch_order(8, 0, epoch) == 3)[0]) for epoch in range(4000)])
    counts = np.bincount(places, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 29  # chi-square, 7 degrees of freedom, p = 1e-4


def steps_of(sampler, accumulate):
    """The sampler's micro-batches grouped by step."""
    micro = list(sampler)
    return [micro[start : start + accumulate] for start in range(0, len(micro), accumulate)]


shapes = st.fixed_dictionaries(
    {
        "world": st.integers(1, 4),
        "accumulate": st.integers(1, 3),
        "size": st.integers(1, 4),
        "extra": st.integers(0, 37),
        "seed": st.integers(0, 99),
        "total": st.integers(0, 9),
    }
)


@settings(max_examples=60)
@given(shapes)
def test_ranks_and_micro_batches_partition_the_global_step(shape):
    world, accumulate = shape["world"], shape["accumulate"]
    batch_size = world * accumulate * shape["size"]
    n = batch_size + shape["extra"]
    common = {"batch_size": batch_size, "seed": shape["seed"], "total_steps": shape["total"]}
    whole = [set(itertools.chain(*step)) for step in steps_of(StepSampler(n, **common), 1)]
    split = [
        steps_of(StepSampler(n, **common, rank=rank, world=world, accumulate=accumulate), accumulate)
        for rank in range(world)
    ]
    for step, expected in enumerate(whole):
        parts = [micro for rank in split for micro in rank[step]]
        assert {len(micro) for micro in parts} == {shape["size"]}
        assert set(itertools.chain(*parts)) == expected
        assert len(expected) == batch_size


@settings(max_examples=60)
@given(shapes, st.data())
def test_resuming_gives_the_tail(shape, data):
    batch_size = shape["world"] * shape["accumulate"] * shape["size"]
    n = batch_size + shape["extra"]
    rank = data.draw(st.integers(0, shape["world"] - 1))
    start = data.draw(st.integers(0, shape["total"]))
    common = {
        "batch_size": batch_size,
        "seed": shape["seed"],
        "total_steps": shape["total"],
        "rank": rank,
        "world": shape["world"],
        "accumulate": shape["accumulate"],
    }
    undisturbed = list(StepSampler(n, **common))
    resumed = StepSampler(n, **common, start_step=start)
    assert list(resumed) == undisturbed[start * shape["accumulate"] :]
    assert len(resumed) == len(list(resumed))


def test_an_epoch_shows_each_image_once_and_drops_the_rest():
    sampler = StepSampler(23, batch_size=5, seed=1, total_steps=8)
    shown = [place for batch in sampler for place in batch]
    for epoch in (0, 1):
        indices = [index for e, index in shown if e == epoch]
        assert len(indices) == len(set(indices)) == 20
        assert indices == epoch_order(23, 1, epoch)[:20].tolist()


def test_rank_takes_every_worldth_place():
    order = epoch_order(12, 0, 0).tolist()
    got = list(StepSampler(12, batch_size=12, seed=0, total_steps=1, rank=1, world=3, accumulate=2))
    assert got == [[(0, order[1]), (0, order[4])], [(0, order[7]), (0, order[10])]]


def test_steps_per_epoch_refuses_what_cannot_be():
    assert steps_per_epoch(100, 32) == 3
    with pytest.raises(UserError, match=r"batch_size 101 is larger than the data \(100 images\)"):
        steps_per_epoch(100, 101)
    with pytest.raises(UserError, match="at least 1"):
        steps_per_epoch(100, 0)


def test_uneven_split_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="multiple of 6"):
        StepSampler(100, batch_size=10, seed=0, total_steps=1, world=3, accumulate=2)


# Class-balanced sampling

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)


@given(LABELS, st.integers(0, 2**40), st.integers(0, 1000))
def test_every_class_has_its_share_and_every_image_its_turn(labels, seed, epoch):
    n = len(labels)
    places = balanced_order(labels, seed, epoch)
    assert places.dtype == np.int64 and len(places) == n
    assert len(set(places.tolist())) == n  # so that every repetition has a key of its own
    shown = places % n
    of_class = [int((labels[shown] == label).sum()) for label in np.unique(labels)]
    assert max(of_class) - min(of_class) <= 1
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        times = np.bincount(shown, minlength=n)[members]
        assert times.max() - times.min() <= 1
        for member, count in zip(members.tolist(), times.tolist(), strict=True):
            assert sorted(place // n for place in places.tolist() if place % n == member) == list(range(count))


def test_classes_of_one_size_are_an_order_of_all():
    labels = np.arange(60) % 4
    assert np.array_equal(np.sort(balanced_order(labels, 1, 2)), np.arange(60))


def test_a_large_class_shows_other_images_in_other_epochs():
    labels = np.array([0] * 90 + [1] * 10)
    epochs = [set(balanced_order(labels, 0, epoch).tolist()) for epoch in range(12)]
    large = [{place for place in epoch if place < 90} for epoch in epochs]
    assert all(len(shown) == 50 for shown in large)
    assert len(set(map(frozenset, large))) == 12
    assert set.union(*large) == set(range(90))


def test_which_class_has_the_odd_one_changes():
    labels = np.array([0, 0, 1, 1, 2])
    assert {int(np.bincount(labels[balanced_order(labels, 0, epoch) % 5]).argmin()) for epoch in range(50)} == {0, 1, 2}


def balanced(labels, **options):
    sampler = StepSampler(len(labels), batch_size=12, seed=4, total_steps=20, labels=np.array(labels), **options)
    return list(sampler)


def test_balanced_batches_do_not_depend_on_ranks_or_restarts():
    labels = [0] * 40 + [1] * 3 + [2] * 17
    whole = balanced(labels)
    assert balanced(labels, start_step=7) == whole[7:]
    ranks = [balanced(labels, rank=rank, world=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert [place for pair in zip(*(ranks[r][step] for r in range(3)), strict=True) for place in pair] == batch
    parts = balanced(labels, accumulate=2)
    assert [parts[2 * step] + parts[2 * step + 1] for step in range(20)] == whole
    shown = np.bincount([labels[index % 60] for batch in whole for _, index in batch])
    assert shown.tolist() == [80, 80, 80]  # 4 epochs of 60


def test_images_without_labels_cannot_be_balanced():
    with pytest.raises(UserError, match="class-balanced sampling needs a label for every image"):
        balanced([0, 1, -1] * 10)
