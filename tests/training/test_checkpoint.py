"""Checkpoint directories: whole or not there, verified when read, one before to fall back on, no pickle."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from tiny_training import NANO  # noqa: F401 (one thread)

from edgemim.training import checkpoint as module
from edgemim.training.checkpoint import Checkpoint, CheckpointError, CheckpointFolder, read_checkpoint


def checkpoint_at(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, generator=generator)
    tensors = {
        "model": {"weight": weight, "tied": weight, "view": weight[:2].T, "count": torch.tensor(step)},
        "optimizer": {"weight|step": torch.tensor(float(step)), "half": weight.bfloat16()},
    }
    return Checkpoint(step, tensors, {"settings": {"seed": 0}, "tally": {"seen": 7 * step}})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    pairs = [(a.tensors[n][k], b.tensors[n][k]) for n in a.tensors for k in a.tensors[n]]
    return a.step == b.step and a.state == b.state and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    path = folder.save(checkpoint_at(12))
    assert path.name == "step-000000012"
    assert names(path) == ["SHA256SUMS", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((path / "state.json").read_text())["step"] == 12
    loaded = folder.load_latest()
    assert loaded is not None
    assert same(loaded, checkpoint_at(12))
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-000000012\n"


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    import hashlib

    path = CheckpointFolder(tmp_path).save(checkpoint_at(1))
    for line in (path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest


def test_only_the_newest_are_kept_at_least_two(tmp_path: Path) -> None:
    for keep, expected in ((3, 3), (1, 2)):
        root = tmp_path / str(keep)
        folder = CheckpointFolder(root, keep=keep)
        for step in (5, 10, 15, 20):
            folder.save(checkpoint_at(step))
        kept = [name for name in names(root) if name.startswith("step-")]
        assert kept == [f"step-{step:09d}" for step in (5, 10, 15, 20)[-expected:]]


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "absent").load_latest() is None


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
def test_one_flipped_bit_is_named_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, place: float
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint_at(1))
    damaged = folder.save(checkpoint_at(2)) / file
    content = bytearray(damaged.read_bytes())
    content[int(place * len(content))] ^= 1 << (int(place * 10) % 8)
    damaged.write_bytes(bytes(content))
    loaded = folder.load_latest()
    assert loaded is not None
    assert same(loaded, checkpoint_at(1))
    warning = capsys.readouterr().err
    assert "step-000000002" in warning
    assert "falling back" in warning
    if file != "SHA256SUMS":
        assert str(damaged) in warning


def test_no_bit_of_the_sums_lets_other_data_in(tmp_path: Path) -> None:
    """Each flip is refused and named, or (a line feed that became another line end) changes nothing that is read."""
    path = CheckpointFolder(tmp_path).save(checkpoint_at(1))
    content = (path / "SHA256SUMS").read_bytes()
    harmless = 0
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        (path / "SHA256SUMS").write_bytes(bytes(changed))
        try:
            loaded = read_checkpoint(path)
        except ValueError as error:
            refusal = str(error)
            assert "step-000000001" in refusal
        else:
            assert same(loaded, checkpoint_at(1))
            harmless += 1
    assert harmless <= content.count(b"\n")


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete"])
def test_missing_pieces_are_noticed(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint_at(1))
    for file in ("model.safetensors", "state.json", "SHA256SUMS"):
        path = folder.save(checkpoint_at(2)) / file
        if damage == "delete":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: -5 if damage == "truncate" else 0])
        loaded = folder.load_latest()
        assert loaded is not None
        assert loaded.step == 1


def test_all_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        (folder.save(checkpoint_at(step)) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint") as error:
        folder.load_latest()
    assert "step-000000001" in str(error.value)
    assert "step-000000002" in str(error.value)


def test_half_written_directories_are_ignored_and_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    whole = folder.save(checkpoint_at(1))
    for name in ("step-000000002.tmp", "step-000000001.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:20])
    (tmp_path / "step-3").mkdir()  # not ours
    loaded = folder.load_latest()
    assert loaded is not None
    assert loaded.step == 1
    assert names(tmp_path) == ["latest", "step-000000001", "step-3"]


@pytest.mark.parametrize("call", ["_write_synced", "_sync_folder"])
def test_a_crash_inside_a_save_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The process ends at its first, second, third ... write: what stood there before still loads."""
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint_at(1))
    real = getattr(module, call)
    for survivors in range(5):
        left = [survivors]

        def dying(*arguments: object, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt  # no handler of the module's own sees it, as with kill -9
            left[0] -= 1
            real(*arguments)

        monkeypatch.setattr(module, call, dying)
        try:
            folder.save(checkpoint_at(2))
        except KeyboardInterrupt:
            loaded = CheckpointFolder(tmp_path).load_latest()
            assert loaded is not None
            assert same(loaded, checkpoint_at(loaded.step))
        else:
            break
    monkeypatch.undo()
    folder.save(checkpoint_at(2))
    loaded = folder.load_latest()
    assert loaded is not None
    assert loaded.step == 2


def test_a_full_disk_is_one_sentence_and_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint_at(1))

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_synced", full)
    with pytest.raises(CheckpointError, match=r"step-000000002 \([\d,]+ bytes\): No space left on device; free space"):
        folder.save(checkpoint_at(2))
    assert names(tmp_path) == ["latest", "step-000000001"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    (folder.save(checkpoint_at(3)) / "model.safetensors").write_bytes(b"damaged")
    folder.save(checkpoint_at(3))
    loaded = folder.load_latest()
    assert loaded is not None
    assert same(loaded, checkpoint_at(3))
    assert names(tmp_path) == ["latest", "step-000000003"]


def test_sums_cannot_point_outside(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint_at(1))
    sums = (path / "SHA256SUMS").read_text()
    (path / "SHA256SUMS").write_text(sums.replace("model.safetensors", "../model.safetensors"))
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)
