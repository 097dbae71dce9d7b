"""Runs of edgemim as real processes, the faults done to them, and what is compared afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import edgemim

PACKAGE = Path(edgemim.__file__).parent.parent
EPOCHS, STEPS_PER_EPOCH = 60, 4
STEPS = EPOCHS * STEPS_PER_EPOCH
PATIENCE_S = 120
"""How long anything may take on a machine that others use too; reached only when something hangs."""

# Small, but with everything that a resumed run has to put back: moments, a moving average, accumulated parts.
PRETRAIN = (
    "pretrain --encoder vit_nano --batch-size 16 --accumulate 2 --warmup-epochs 3 --base-lr 4e-3 --clip-grad 1 "
    f"--ema-decay 0.95 --log-every 1 --epochs {EPOCHS}"
).split()


@dataclass(frozen=True)
class Ended:
    """How a command ended; `output` holds standard output and standard error."""

    code: int
    output: str

    def refused(self, *words: str, code: int = 2) -> None:
        """Check that it ended with one clear sentence: this exit code, these words, no traceback."""
        assert self.code == code, self.output
        assert "Traceback" not in self.output, self.output
        sentences = [line for line in self.output.splitlines() if line.startswith("edgemim: ")]
        assert len(sentences) == 1, self.output
        missing = [word for word in words if word not in sentences[0]]
        assert not missing, f"{missing} not in: {sentences[0]}"


class Job:
    """A running command: one process, or torchrun with its ranks."""

    def __init__(self, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> None:
        self.words = [str(word) for word in command]
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"output-{time.monotonic_ns()}.txt"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                self.words,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._family: dict[int, psutil.Process] = {}

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition on the running job; fail if it ends or nothing happens."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.running, f"ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {what} in {PATIENCE_S} s:\n{self.output}"
            time.sleep(0.002)

    def descendants(self) -> list[psutil.Process]:
        """Its child processes and theirs, at this moment; also remembered for `orphans`."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._family.update({child.pid: child for child in found})
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process."""
        self.descendants()
        os.kill(self.pid, number)

    def kill(self) -> Ended:
        """SIGKILL its first process, as `kill -9 PID` does."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def kill_all(self) -> Ended:
        """SIGKILL everything that belongs to it in one moment, as a power cut would."""
        for process in self.descendants():
            process.kill()
        return self.kill()

    def wait(self) -> Ended:
        """Wait for its end."""
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {PATIENCE_S} s:\n{self.output}") from None
        return Ended(code, self.output)

    def orphans(self, grace_s: float = 10.0) -> list[psutil.Process]:
        """Processes that it started and that outlive it by more than `grace_s`."""
        return psutil.wait_procs(list(self._family.values()), timeout=grace_s)[1]

    def clean_up(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.running:
            self.kill_all()
        for process in self.orphans(grace_s=0):
            process.kill()


class Launcher:
    """Starts jobs and ends them with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: list[Job] = []

    def start(
        self,
        words: Sequence[str | Path],
        *,
        script: Path | None = None,
        processes: int = 1,
        restarts: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> Job:
        """Start `python -m edgemim WORDS` (or a script in its place), under torchrun where there are more processes."""
        program = ["-m", "edgemim"] if script is None else [str(script)]
        command = [sys.executable, *program, *words]
        if processes > 1:
            elastic = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
            command = [sys.executable, "-m", "torch.distributed.run", *elastic, *program, *words]
        cache = {"XDG_CACHE_HOME": str(self._folder / "cache"), "PYTHONPATH": str(PACKAGE)}
        job = Job(command, self._folder / "logs", {**cache, **(environment or {})})
        self._jobs.append(job)
        return job

    def run(self, words: Sequence[str | Path], **options: int) -> Ended:
        """Start and wait."""
        return self.start(words, **options).wait()  # pyright: ignore[reportArgumentType]

    def clean_up(self) -> None:
        """End what still runs."""
        for job in self._jobs:
            job.clean_up()


@dataclass(frozen=True)
class Run:
    """A run folder as a test looks at it."""

    folder: Path

    @property
    def record(self) -> dict:
        """Its run.json."""
        return json.loads((self.folder / "run.json").read_text())

    @property
    def model_hash(self) -> str:
        """SHA-256 of the weights that it hands on."""
        return sha256(self.folder / "model" / "model.safetensors")

    @property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoint directories, oldest first."""
        found = (self.folder / "checkpoints").glob("step-*")
        return sorted(path for path in found if path.name[5:].isdigit() and path.is_dir())

    @property
    def leftovers(self) -> list[str]:
        """Names of files and folders that are half of something."""
        return sorted(path.name for path in self.folder.rglob("*") if path.suffix in (".tmp", ".old"))

    def checkpoint_hashes(self, which: int = -1) -> dict[str, str]:
        """SHA-256 of a checkpoint's tensor files (state.json holds seconds, which differ between runs)."""
        return {path.name: sha256(path) for path in sorted(self.checkpoints[which].glob("*.safetensors"))}

    @property
    def results(self) -> tuple[str, dict[str, str]]:
        """What must not depend on faults: the model's hash and those of the last checkpoint."""
        return self.model_hash, self.checkpoint_hashes()

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint; 0 without one."""
        return int(self.checkpoints[-1].name[5:]) if self.checkpoints else 0

    def metrics(self, *keys: str) -> list[tuple]:
        """(step, figures…) of each whole line of metrics.jsonl that has them."""
        try:
            text = (self.folder / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [(line["step"], *(line[key] for key in keys)) for line in lines if all(key in line for key in keys)]

    @property
    def step(self) -> int:
        """The last step that was logged; 0 before the first."""
        return max((step for (step, _) in self.metrics("loss")), default=0)

    def contents(self) -> dict[str, str]:
        """SHA-256 of each file in the folder but the lock."""
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(self.folder)): sha256(path) for path in files}


def sha256(path: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip_bit(path: Path, position: float = 0.5) -> None:
    """Turn one bit over, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0b100
    path.write_bytes(content)
