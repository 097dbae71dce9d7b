"""The store of features on disk: what is read is what was written, whoever was killed, whatever was damaged."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from edgemim.errors import UserError
from edgemim.teachers import store as module
from edgemim.teachers.store import FeatureStore, store_name, total_bytes

SHAPE = (20, 6, 8)
IDENTITY = {"teacher": "a", "version": 1}


def image(index: int, other: int = 0) -> np.ndarray:
    return np.random.default_rng([index, other]).integers(0, 256, (3, 4, 4), dtype=np.uint8)


def row(index: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng([7, index]).normal(size=shape[1:]).astype(np.float16)


def filled(root: Path, indices: range = range(20)) -> FeatureStore:
    store = FeatureStore.open(root, IDENTITY, SHAPE)
    for index in indices:
        store.write(index, image(index), row(index))
    return store


def read(store: FeatureStore, indices: list[int]) -> tuple[np.ndarray, list[bool]]:
    rows, found = store.read(np.array(indices), np.stack([image(i) for i in indices]))
    return rows, found.tolist()


def test_what_was_written_is_read_by_the_next_process(tmp_path: Path) -> None:
    first = filled(tmp_path, range(5, 12))
    assert (first.filled, first.counts.computed) == (7, 7)
    assert first.missing().tolist() == [*range(5), *range(12, 20)]
    for store in (first, FeatureStore.open(tmp_path, IDENTITY, SHAPE)):
        rows, found = read(store, [11, 4, 5, 5])
        assert found == [True, False, True, True]
        np.testing.assert_array_equal(rows, [row(11), np.zeros_like(row(0)), row(5), row(5)])
    sizes = [(first.folder / name).stat().st_size for name in ("rows", "checks")]
    assert sum(sizes) == total_bytes(SHAPE)


def test_another_identity_or_shape_is_another_store(tmp_path: Path) -> None:
    filled(tmp_path)
    for identity, shape in (({**IDENTITY, "teacher": "b"}, SHAPE), (IDENTITY, (21, 6, 8))):
        assert FeatureStore.open(tmp_path, identity, shape).filled == 0
    assert FeatureStore.open(tmp_path, dict(reversed(IDENTITY.items())), SHAPE).filled == 20


def test_a_row_of_other_pixels_does_not_count(tmp_path: Path) -> None:
    store = FeatureStore.open(filled(tmp_path).folder.parent, IDENTITY, SHAPE)
    _, found = store.read(np.array([3, 4]), np.stack([image(3), image(4, other=1)]))
    assert found.tolist() == [True, False]
    assert store.counts.changed == 1
    store.write(4, image(4, other=1), row(17))
    rows, found = FeatureStore.open(tmp_path, IDENTITY, SHAPE).read(np.array([4]), image(4, other=1)[None])
    assert found.all()
    np.testing.assert_array_equal(rows[0], row(17))


@pytest.mark.parametrize("on_opening", [True, False])
def test_a_flipped_bit_costs_one_row_and_is_said(
    on_opening: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = filled(tmp_path).folder
    content = bytearray((folder / "rows").read_bytes())
    content[9 * 2 * 6 * 8 + 5] ^= 1
    (folder / "rows").write_bytes(content)
    store = FeatureStore.open(tmp_path, IDENTITY, SHAPE)
    if on_opening:
        assert store.verify() == 1
        assert "1 of 20 rows" in capsys.readouterr().err
    rows, found = read(store, [8, 9, 10])
    assert found == [True, False, True]
    assert not rows[1].any()
    assert store.counts.damaged == 1
    assert store.missing().tolist() == [9]
    store.write(9, image(9), row(9))
    assert FeatureStore.open(tmp_path, IDENTITY, SHAPE).verify() == 0


def test_a_half_written_row_is_none(tmp_path: Path) -> None:
    """The order in which two files reach a disk is not ours: new digests may meet old bytes."""
    folder = filled(tmp_path).folder
    with open(folder / "rows", "r+b") as file:
        file.seek(4 * 96 + 48)
        file.write(bytes(48))
    store = FeatureStore.open(tmp_path, IDENTITY, SHAPE)
    assert read(store, [3, 4, 5])[1] == [True, False, True]


def test_verification_keeps_to_its_budget(tmp_path: Path) -> None:
    folder = filled(tmp_path).folder
    (folder / "rows").write_bytes(bytes((folder / "rows").stat().st_size))
    store = FeatureStore.open(tmp_path, IDENTITY, SHAPE)
    assert store.verify(budget_bytes=3 * 96) == 3
    assert read(store, [19])[1] == [False]  # what was not looked at before is when it is read
    assert store.counts.damaged == 4


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("rows", lambda path: os.truncate(path, 100), "rows has 100 bytes, not 1,920"),
        ("checks", lambda path: path.unlink(), "checks is missing"),
        ("identity.json", lambda path: path.write_text("{"), "identity.json cannot be read"),
        ("identity.json", lambda path: path.write_text("{}"), "describes another"),
    ],
)
def test_a_broken_store_is_made_anew_with_a_message(
    name: str, change, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = filled(tmp_path).folder
    change(folder / name)
    store = FeatureStore.open(tmp_path, IDENTITY, SHAPE)
    assert words in capsys.readouterr().err
    assert store.filled == 0
    store.write(1, image(1), row(1))
    assert read(FeatureStore.open(tmp_path, IDENTITY, SHAPE), [1])[1] == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_a_full_disk_ends_the_filling_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, range(3))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    store.write(3, image(3), row(3))
    store.write(4, image(4), row(4))
    assert capsys.readouterr().err.count("No space left on device") == 1
    monkeypatch.undo()
    assert read(store, [2, 3])[1] == [True, False]
    with pytest.raises(UserError, match="cannot be written"):
        store.clear()


def test_what_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, range(3))
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    store = FeatureStore.open(tmp_path, IDENTITY, SHAPE)
    store.write(5, image(5), row(5))
    assert read(store, [2, 5])[1] == [True, False]
    assert store.counts.computed == 0


def test_a_place_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the teacher cache"):
        FeatureStore.open(tmp_path / "file", IDENTITY, SHAPE)


def test_clearing_empties_it_for_all(tmp_path: Path) -> None:
    store, other = filled(tmp_path), FeatureStore.open(tmp_path, IDENTITY, SHAPE)
    assert read(other, [3])[1] == [True]
    store.clear()
    assert other.missing().tolist() == list(range(20))
    assert read(other, [3, 4])[1] == [False, False]


LARGE = (400, 100, 64)


def writer(root: Path, indices: Iterable[int]) -> int:
    """Start a process that opens the store and writes rows; return its id."""
    child = os.fork()
    if not child:
        store = FeatureStore.open(root, IDENTITY, LARGE)
        for index in indices:
            store.write(index, image(index), row(index, LARGE))
        os._exit(0)
    return child


def test_after_a_kill_every_row_is_right_or_not_there(tmp_path: Path) -> None:
    child = writer(tmp_path, itertools.cycle(range(400)))
    time.sleep(0.15)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    store = FeatureStore.open(tmp_path, IDENTITY, LARGE)
    assert store.filled > 0
    rows, found = store.read(np.arange(400), np.stack([image(i) for i in range(400)]))
    for index in np.flatnonzero(found).tolist():
        np.testing.assert_array_equal(rows[index], row(index, LARGE))
    assert store.counts.damaged <= 1
    assert found.sum() == store.filled


def test_several_processes_make_and_fill_one_store(tmp_path: Path) -> None:
    children = [writer(tmp_path, range(part, 400, 4)) for part in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    store = FeatureStore.open(tmp_path, IDENTITY, LARGE)
    assert store.filled == 400
    assert store.verify() == 0
    rows, found = store.read(np.array([0, 1, 398, 399]), np.stack([image(i) for i in (0, 1, 398, 399)]))
    assert found.all()
    np.testing.assert_array_equal(rows, [row(i, LARGE) for i in (0, 1, 398, 399)])


def test_the_name_is_one_of_the_content() -> None:
    assert store_name({"a": 1, "b": 2}, SHAPE) == store_name({"b": 2, "a": 1}, SHAPE)
    assert len({store_name({"a": value}, SHAPE) for value in (1, 2, "1")}) == 3
