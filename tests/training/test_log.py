"""Logs that read like an undisturbed run's, and that never stop a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemim.training.log import MetricsLog, ProgressLine


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_json_line_a_step_and_a_tensorboard_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(10, {"loss": 0.5})
    log.write(20, {"loss": 0.25, "lr": 1e-3})
    log.close()
    assert lines_of(tmp_path) == [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25, "lr": 1e-3}]
    events = list((tmp_path / "tensorboard").glob("events.*"))
    assert len(events) == 1
    assert b"loss" in events[0].read_bytes()


def test_a_resumed_log_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    log = MetricsLog(tmp_path, resume_step=20)
    log.write(25, {"loss": 1.0})
    log.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 20, 25]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, enabled=False)
    log.write(1, {"loss": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_only_warns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.warns(UserWarning, match="metrics are not logged"):
        log.write(1, {"loss": 1.0})
    log.close()


def test_without_a_terminal_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine(100, 0, label="pretrain", enabled=True, every_s=1000)
    for step in (1, 50, 99, 100):
        progress.update(step, f"loss {step}")
    progress.close()
    out, err = capsys.readouterr()
    shown = [line for line in (out + err).splitlines() if "loss" in line]
    assert len(shown) == 1  # the last step always
    assert "loss 100" in shown[0]
    quiet = ProgressLine(100, 0, label="pretrain", enabled=False, every_s=0)
    quiet.update(100, "loss")
    quiet.close()
    assert capsys.readouterr() == ("", "")
