"""kill -9 at any moment costs time, never the result."""

from __future__ import annotations

import json
import logging
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fault_harness import PRETRAIN, STEPS, Ended, Job, Launcher, Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edgemim.commands.finetune import FinetuneConfig
from edgemim.training.checkpoint import read_checkpoint

log = logging.getLogger(__name__)


def kill_again_and_again(
    launcher: Launcher, words: Sequence[str | Path], run: Run, *, kills: int, processes: int, seed: int
) -> list[int]:
    """Start a run, kill it at random points and resume it after each, then let it end; return the steps killed at."""
    generator = random.Random(seed)
    targets = sorted(generator.sample(range(1, STEPS - 2), kills))
    killed_at = []
    for number, target in enumerate(targets):
        # Saves after every step in two of three attempts (so that kills fall into saves), at epochs in the third (so
        # that steps are done again); a worker in every other one.
        options = ["--checkpoint-minutes", "10" if number % 3 == 2 else "0", "--workers", str(number % 2)]
        job = launcher.start([*words, *options, *(["--resume"] if number else [])], processes=processes)
        job.wait_until(lambda: training(job) and run.step >= target, f"step {target}")  # noqa: B023
        delay_s = generator.uniform(0, 0.04)
        time.sleep(delay_s)
        ended = job.kill_all() if processes > 1 else job.kill()
        assert ended.code == -signal.SIGKILL, ended.output
        assert not job.orphans()
        killed_at.append(run.step)
        log.info("kill %d: %.1f ms after step %d, at step %d", number, 1000 * delay_s, target, run.step)
    ended = launcher.run([*words, "--workers", "0", "--resume"], processes=processes)
    assert ended.code == 0, ended.output
    return killed_at


def training(job: Job) -> bool:
    """Whether a resumed job has read its checkpoint (before that, the log still shows the last attempt's steps)."""
    return "--resume" not in job.words or "resuming at step" in job.output


def check(run: Run, reference: Run, killed_at: list[int], kills: int) -> None:
    """The killed run is the undisturbed one, and it was truly killed on its way."""
    assert len(killed_at) == kills
    assert sum(0 < step < STEPS for step in killed_at) == kills, killed_at
    assert len(set(killed_at)) > kills // 2, killed_at
    assert run.results == reference.results
    assert run.metrics("loss", "grad_norm", "lr") == reference.metrics("loss", "grad_norm", "lr")
    assert curve(run) == curve(reference)
    assert run.record["results"]["images"] == reference.record["results"]["images"]
    assert run.record["status"] == "done"
    assert not run.leftovers


def curve(run: Run) -> list[tuple[int, float]]:
    """The loss as TensorBoard shows it."""
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [10, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_on_one_process(launcher: Launcher, images: Path, tmp_path: Path, reference: Run, kills: int) -> None:
    run = Run(tmp_path / "run")
    words = [*PRETRAIN, "--data", images, "--out", run.folder]
    killed_at = kill_again_and_again(launcher, words, run, kills=kills, processes=1, seed=kills)
    check(run, reference, killed_at, kills)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [10, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_on_two_processes(
    launcher: Launcher, images: Path, tmp_path: Path, reference_of_two: Run, kills: int
) -> None:
    run = Run(tmp_path / "run")
    words = [*PRETRAIN, "--data", images, "--out", run.folder]
    killed_at = kill_again_and_again(launcher, words, run, kills=kills, processes=2, seed=100 + kills)
    check(run, reference_of_two, killed_at, kills)


def test_killed_inside_a_save(
    launcher: Launcher, images: Path, tmp_path: Path, reference: Run, edgemim_here: Callable[..., Ended]
) -> None:
    run = Run(tmp_path / "run")
    words = [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "0"]
    before = 0
    for place, step in (("half_written", 40), ("written", 80), ("renamed", 120)):
        sign = tmp_path / place
        environment = {"PAUSE_AT": place, "PAUSE_STEP": str(step), "PAUSE_SIGN": str(sign)}
        script = Path(__file__).parent / "pause_in_save.py"
        job = launcher.start([*words, *(["--resume"] if before else [])], script=script, environment=environment)
        job.wait_until(sign.exists, f"save of step {step}")
        job.kill()
        # Killed before the rename, the checkpoint one epoch earlier is the newest; after it, the new one is.
        assert run.saved_step == (step if place == "renamed" else step - 4)
        if before:
            assert f"resuming at step {before} of {STEPS}" in job.output
        assert ([f"step-{step:09d}.tmp"] if place != "renamed" else ["latest.tmp"]) == run.leftovers
        before = run.saved_step
    # `latest` still names the checkpoint before: it is for people, loading looks at the directories.
    assert (run.folder / "checkpoints" / "latest").read_text().strip() == "step-000000116"
    ended = edgemim_here([*words, "--resume"])
    assert ended.code == 0, ended.output
    assert f"resuming at step {before} of {STEPS}" in ended.output
    assert not run.leftovers
    assert run.results == reference.results


def test_one_rank_killed_is_restarted_by_the_agent(
    launcher: Launcher, images: Path, tmp_path: Path, reference_of_two: Run
) -> None:
    run = Run(tmp_path / "run")
    words = [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "1", "--checkpoint-epochs", "3"]
    job = launcher.start(words, processes=2, restarts=2)
    job.wait_until(lambda: run.step >= 100, "step 100")
    kill_rank(job, 1)
    ended = job.wait()
    assert ended.code == 0, ended.output
    assert "resuming at step 9" in ended.output, ended.output  # the save before step 100 is that of step 96
    assert run.results == reference_of_two.results
    assert run.metrics("loss") == reference_of_two.metrics("loss")
    assert not job.orphans()


def test_one_rank_killed_without_restarts(launcher: Launcher, images: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    words = [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "1"]
    job = launcher.start(words, processes=2)
    job.wait_until(lambda: run.step >= 100, "step 100")
    kill_rank(job, 0)
    ended = job.wait()
    assert ended.code != 0
    assert not job.orphans()
    assert run.saved_step >= 96
    # What the survivor says must send nobody looking for a fault in the program.
    assert "fault of edgemim" not in ended.output, ended.output
    assert "process 1 of 2 lost the others" in ended.output
    for path in run.checkpoints:
        read_checkpoint(path)  # verifies


def kill_rank(job: Job, rank: int) -> None:
    """SIGKILL one rank of a torchrun job."""
    ranks = [child for child in job.descendants() if child.environ().get("RANK") == str(rank)]
    # A rank's data workers share its environment: the rank is the one whose parent is the agent.
    next(child for child in ranks if child.ppid() == job.pid).kill()


FINETUNE = (
    "finetune --init scratch --encoder vit_nano --batch-size 16 --epochs 40 --warmup-epochs 2 --base-lr 8e-3 "
    "--drop-path 0.2 --val-share 0.2 --mixing.mixup 0.8 --mixing.cutmix 0.5 --evaluate-every 4 --log-every 1"
).split()


def test_killed_finetuning(
    launcher: Launcher, images: Path, tmp_path: Path, edgemim_here: Callable[..., Ended]
) -> None:
    undisturbed, run = Run(tmp_path / "undisturbed"), Run(tmp_path / "run")
    assert "rand-m10" in json.dumps(FinetuneConfig().model_dump(mode="json"))  # what repeats must be random
    ended = edgemim_here([*FINETUNE, "--data", images, "--out", undisturbed.folder, "--workers", "0"])
    assert ended.code == 0, ended.output
    words = [*FINETUNE, "--data", images, "--out", run.folder]
    for target, workers, resume in ((23, "1", []), (70, "0", ["--resume"])):
        job = launcher.start([*words, "--workers", workers, *resume])
        job.wait_until(lambda: run.step >= target, f"step {target}")  # noqa: B023
        job.kill()
    ended = edgemim_here([*words, "--workers", "0", "--resume"])
    assert ended.code == 0, ended.output
    assert run.results == undisturbed.results
    assert run.record["results"]["top1"] == undisturbed.record["results"]["top1"]
    assert run.record["results"]["confusion"] == undisturbed.record["results"]["confusion"]
