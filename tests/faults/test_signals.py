"""Asked to stop, a run saves, says how to go on and ends with the code for it; what it started ends with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_harness import PRETRAIN, STEPS, Ended, Job, Launcher, Run

from edgemim.commands import finetune


def words(images: Path, run: Run, *more: str) -> list[str | Path]:
    """The reference's command into another folder; checkpoints so rare that only a signal brings one."""
    return [*PRETRAIN, "--data", images, "--out", run.folder, "--checkpoint-epochs", "1000", *more]


def signalled(job: Job, run: Run, at: int, *signals: signal.Signals) -> tuple[int, Ended]:
    """Send signals 10 ms apart once a job is at a step of its own; the last step known then, and how it ended."""
    job.wait_until(
        lambda: ("--resume" not in job.words or "resuming at" in job.output) and run.step >= at, f"step {at}"
    )
    job.descendants()
    seen = run.step
    for number in signals:
        job.signal(number)
        time.sleep(0.01)
    return seen, job.wait()


@pytest.fixture(scope="module")
def story(images: Path, module_launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One run, stopped four times in four ways and resumed each time; a second run knocks at its folder meanwhile."""
    run = Run(tmp_path_factory.mktemp("signals") / "run")
    ways = {
        "SIGTERM": (40, signal.SIGTERM),
        "SIGUSR1": (90, signal.SIGUSR1),
        "SIGTERM twice": (140, signal.SIGTERM, signal.SIGTERM),
        "Ctrl-C": (190, signal.SIGINT),
    }
    told: dict = {"run": run, "stops": {}}
    for number, (name, (at, *signals)) in enumerate(ways.items()):
        job = module_launcher.start(
            words(images, run, "--workers", str(number % 2 * 2), *(["--resume"] if number else []))
        )
        seen, ended = signalled(job, run, at, *signals)
        told["stops"][name] = {
            "seen": seen, "ended": ended, "saved": run.saved_step, "record": run.record, "orphans": job.orphans(),
            "leftovers": run.leftovers,
        }  # fmt: skip
    told["last"] = module_launcher.run(words(images, run, "--workers", "0", "--resume"))
    return told


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGTERM twice", 75), ("Ctrl-C", 130)])
def test_a_signal_saves_and_ends_with_its_code(story: dict, name: str, code: int) -> None:
    stop = story["stops"][name]
    stop["ended"].refused("--resume", f"saved at step {stop['saved']} of {STEPS}", code=code)
    # Nothing that was logged before the signal is lost, and the run goes on for no more than the step under way.
    assert stop["seen"] <= stop["saved"] <= stop["seen"] + 10
    assert stop["saved"] < STEPS
    assert stop["record"]["exit_code"] == code
    assert stop["record"]["status"] == "saved"
    assert not stop["orphans"]
    assert not stop["leftovers"]


def test_no_step_is_lost_and_the_result_is_the_same(story: dict, reference: Run) -> None:
    assert story["last"].code == 0, story["last"].output
    last = story["stops"]["Ctrl-C"]
    assert f"resuming at step {last['saved']} of {STEPS}" in story["last"].output
    assert story["run"].model_hash == reference.model_hash
    assert story["run"].metrics("loss") == reference.metrics("loss")


def test_a_signal_cuts_the_watching_short(
    launcher: Launcher, images: Path, tmp_path: Path, reference: Run, edgemim_here: Callable[..., Ended]
) -> None:
    """SIGTERM while the run looks at its pictures, which here would take ten minutes."""
    run, sign = Run(tmp_path / "run"), tmp_path / "watching"
    script = Path(__file__).parent / "slow_watch.py"
    job = launcher.start(words(images, run, "--workers", "1"), script=script, environment={"WATCH_SIGN": str(sign)})
    job.wait_until(sign.exists, "hook after epoch 10")
    since = time.monotonic()
    job.signal(signal.SIGTERM)
    ended = job.wait()
    assert time.monotonic() - since < 30
    ended.refused("saved at step 40", code=75)
    assert run.saved_step == 40  # checkpoints come every 1000 epochs here: this one is the signal's
    assert not job.orphans()
    finished = edgemim_here(words(images, run, "--workers", "0", "--resume"))
    assert finished.code == 0, finished.output
    assert run.model_hash == reference.model_hash


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["SIGTERM", "Ctrl-C"]
)
def test_torchrun_passes_the_signal_on_and_all_ranks_save(
    launcher: Launcher, images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = Run(tmp_path / "run")
    job = launcher.start(words(images, run, "--workers", "1"), processes=2, restarts=2)
    seen, ended = signalled(job, run, 60, number)
    assert ended.code != 0
    assert seen <= run.saved_step <= seen + 10, ended.output
    assert run.record["exit_code"] == (75 if number == signal.SIGTERM else 130), ended.output
    assert ended.output.count(f"saved at step {run.saved_step} of {STEPS}") == 2, ended.output
    assert not job.orphans()


def test_a_signal_in_the_last_evaluation(
    images: Path, tmp_path: Path, edgemim_here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is over and saved, its last figures are not out yet: the run ends at once, and a resume brings them."""
    run = Run(tmp_path / "run")
    words = (
        "finetune --init scratch --encoder vit_nano --batch-size 16 --epochs 2 --warmup-epochs 1 --workers 0".split()
    )
    words = [*words, "--evaluate-every", "0", "--data", images, "--out", run.folder]

    def interrupted(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the evaluation went on")

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "evaluate_classifier", interrupted)
        edgemim_here(words).refused("SIGTERM", "--resume", code=75)
    assert run.record["status"] == "saved"
    assert not (run.folder / "model").exists()
    ended = edgemim_here([*words, "--resume"])
    assert ended.code == 0, ended.output
    assert run.record["results"]["evaluated_images"] > 0
    assert run.model_hash
