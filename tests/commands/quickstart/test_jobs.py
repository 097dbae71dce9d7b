import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemim.commands.finetune import FinetuneConfig
from edgemim.commands.pretrain import PretrainConfig
from edgemim.commands.quickstart.jobs import Job, JobPool, finished
from edgemim.errors import UserError
from edgemim.models.sizes import SIZES
from edgemim.run import read_record

SMALL = {
    "encoder": SIZES["vit_nano"],
    "batch_size": 16,
    "workers": 0,
    "device": "cpu",
    "picture_every": 0,
    "knn_every": 0,
}


def pretraining(folder: Path, data: Path, **settings: object) -> Job:
    return Job(
        folder.name, PretrainConfig.model_validate({**SMALL, "epochs": 1, "out": folder, "data": data} | settings)
    )


def digest(job: Job) -> str:
    return hashlib.sha256((job.folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_results_do_not_depend_on_processes_and_finished_jobs_are_kept(tmp_path: Path, photos: Path):
    two = {i: pretraining(tmp_path / f"two-{i}", photos, seed=i) for i in range(2)}
    with JobPool(2) as pool:
        first = pool.run(two)
        one = pretraining(tmp_path / "one", photos, seed=0)
        with JobPool(1) as single:
            assert single.run({0: one})[0]["steps"] == first[0]["steps"]
        assert digest(two[0]) == digest(one)
        assert digest(two[0]) != digest(two[1])
        assert "pre-trained encoder in" in two[0].log.read_text()

        before = (two[0].folder / "model" / "model.safetensors").stat().st_mtime_ns
        changed = pretraining(tmp_path / "two-1", photos, seed=7)
        assert finished(changed) is None
        again = pool.run({0: two[0], 1: changed})
        assert (two[0].folder / "model" / "model.safetensors").stat().st_mtime_ns == before
        assert again[0] == first[0]
        assert finished(changed) is not None

        with pytest.raises(UserError, match=r"^bad: .*nowhere.*\(log: .*bad\.log\)"):
            pool.run({0: Job("bad", FinetuneConfig(data=Path("nowhere"), out=tmp_path / "bad", init="scratch"))})


def test_a_half_done_job_is_not_taken_for_finished(tmp_path: Path):
    job = pretraining(tmp_path / "job", tmp_path)
    assert finished(job) is None
    job.folder.mkdir()
    (job.folder / "run.json").write_text('{"status": "running", "config": {}}')
    assert finished(job) is None


STOPPED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_jobs import JobPool, pretraining
if __name__ == "__main__":
    root, data = map(Path, sys.argv[1:3])
    with JobPool(1) as pool:
        pool.run({name: pretraining(root / name, data, epochs=10000) for name in ("long", "next")})
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_training_outlives_a_stopped_quick_start(tmp_path: Path, photos: Path, number: signal.Signals):
    """SIGKILL hits the quick start alone; Ctrl-C its whole process group, and the running training saves first."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    words = [tmp_path / "stopped.py", tmp_path, photos, Path(__file__).parent]
    parent = subprocess.Popen([sys.executable, *map(str, words)], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        assert soon((tmp_path / "long" / "metrics.jsonl").exists, 120)
        children = child_processes(parent.pid)
        assert children
        if number == signal.SIGKILL:
            parent.kill()
        else:
            os.killpg(parent.pid, number)
        parent.wait(60)
        assert soon(lambda: not any(map(alive, children)), 20)
    finally:
        parent.kill()
    assert not (tmp_path / "next").exists()
    if number == signal.SIGINT:
        assert read_record(tmp_path / "long")["status"] == "saved"
        assert list((tmp_path / "long" / "checkpoints").iterdir())


def soon(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition holds within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def child_processes(pid: int) -> list[int]:
    psutil = pytest.importorskip("psutil")
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
