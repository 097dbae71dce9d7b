"""What surrounds a training: whose folder it is, and what the record says afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_training import NORMALIZATION, nano_encoder, tiny_batches

from edgemim.errors import UserError
from edgemim.methods import MaeConfig
from edgemim.run import RunRecord
from edgemim.training.distributed import World
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, TrainingConfig
from edgemim.training.session import loader_arguments, open_run, open_run_folder, resumes, run_training

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = TrainingConfig(batch_size=8, epochs=2, base_lr=0.1, log_every=1)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"out": tmp_path / "run"})
    folder, lock = open_run_folder("pretrain", config, ALONE)
    assert folder.is_dir()
    with pytest.raises(UserError, match="another run is writing"):
        open_run_folder("pretrain", config, ALONE)
    assert lock is not None
    lock.release()
    open_run_folder("pretrain", config, ALONE)


def test_an_old_result_is_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"verb": "pretrain"}')
    (tmp_path / "model").mkdir()
    config = CONFIG.model_copy(update={"out": tmp_path})
    with pytest.raises(UserError, match="not empty"):
        open_run_folder("pretrain", config, ALONE)
    open_run_folder("pretrain", config.model_copy(update={"resume": True}), ALONE)
    assert (tmp_path / "model").exists()
    open_run_folder("pretrain", config.model_copy(update={"overwrite": True}), ALONE)
    assert not (tmp_path / "model").exists()


def test_a_restarted_rank_resumes_and_never_empties_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    config = CONFIG.model_copy(update={"out": tmp_path / "run", "overwrite": True})
    folder, lock = open_run_folder("pretrain", config, ALONE)
    assert lock is not None
    lock.release()
    (folder / "run.json").write_text("{}")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resumes(config)
    open_run_folder("pretrain", config, ALONE)
    assert (folder / "run.json").exists()


def test_a_restart_makes_no_other_runs_folder_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun starts a refused rank again too: the second attempt must be refused like the first."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    (tmp_path / "run.json").write_text("{}")
    for owner in (None, "another job"):
        if owner:
            (tmp_path / ".job").write_text(owner)
        with pytest.raises(UserError, match="not empty"):
            open_run_folder("pretrain", CONFIG.model_copy(update={"out": tmp_path}), ALONE)


def test_paths_that_cannot_be_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        open_run_folder("pretrain", CONFIG.model_copy(update={"out": tmp_path / "file"}), ALONE)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UserError, match="--out FOLDER"):
        open_run_folder("pretrain", CONFIG, World(0, 2, torch.device("cpu")))


def run(folder: Path, config: TrainingConfig, faults: int = 0) -> dict:
    """Train a nano MAE for two epochs of two steps; the record's content."""
    torch.manual_seed(0)
    model = MaeConfig().build(nano_encoder(), NORMALIZATION, None)
    optimizer = build_adamw(model, weight_decay=0.05, betas=config.betas)
    plan = Plan.of(config, 2)

    def batches(start: int):
        for number, batch in enumerate(tiny_batches(start, plan.total_steps)):
            batch.skipped += [(f"bad{number}.png", "cut short")] * (number < faults)
            yield batch

    try:
        with RunRecord("pretrain", folder, config) as record:
            run_training(model, optimizer, config, plan, ALONE, record, batches=batches, data_fingerprint="x")
    except UserError:
        pass
    return json.loads((folder / "run.json").read_text())


def test_the_record_holds_the_figures(tmp_path: Path) -> None:
    record = run(tmp_path, CONFIG.model_copy(update={"max_unreadable": 0.5}), faults=1)
    results = record["results"]
    assert record["status"] == "done"
    assert results["steps"] == 4
    assert results["parameters"] == sum(p.numel() for p in nano_encoder().vit.parameters())
    assert results["nonfinite_steps"] == 0
    assert results["images"]["drawn"] == 32
    assert results["images"]["unreadable_files"] == [{"path": "bad0.png", "reason": "cut short"}]
    assert results["last_metrics"]["loss"] > 0
    assert results["images_per_s"] > 0
    assert 0 <= results["data_wait"] <= 1


def test_the_record_counts_images_of_a_failed_run_too(tmp_path: Path) -> None:
    record = run(tmp_path, CONFIG, faults=4)
    assert record["status"] == "failed"
    assert record["exit_code"] == 2
    assert "cannot be read" in record["error"]
    assert record["results"]["images"]["unreadable_draws"] > 0


def test_a_resumed_training_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, CONFIG)
    run(tmp_path, CONFIG.model_copy(update={"resume": True}))
    assert "resuming at step 4 of 4" in capsys.readouterr().out


def test_a_run_frees_its_folder_however_it_ends(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"out": tmp_path / "run"})
    with pytest.raises(ZeroDivisionError), open_run("pretrain", config, ALONE) as record:
        raise ZeroDivisionError
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    with open_run("pretrain", config.model_copy(update={"overwrite": True}), ALONE) as record:
        assert record.folder == tmp_path / "run"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def test_a_loader_is_told_the_run_and_the_place_in_it() -> None:
    config, plan = CONFIG.model_copy(update={"accumulate": 2, "seed": 7, "workers": 1}), Plan(3, 6, 0)
    assert loader_arguments(config, plan, World(1, 4, torch.device("cpu"))) == {
        "batch_size": 8,
        "seed": 7,
        "total_steps": 6,
        "rank": 1,
        "world": 4,
        "accumulate": 2,
        "workers": 1,
        "pin_memory": False,
    }
