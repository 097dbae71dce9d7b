import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgemim.commands.finetune import FinetuneConfig
from edgemim.commands.pretrain import PretrainConfig
from edgemim.commands.quickstart.jobs import Job, JobPool, finished
from edgemim.errors import UserError
from edgemim.models.sizes import SIZES

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
        one = {i: pretraining(tmp_path / f"one-{i}", photos, seed=i) for i in range(2)}
        with JobPool(1) as single:
            assert [results["steps"] for results in single.run(one).values()] == [first[0]["steps"]] * 2
        assert [digest(job) for job in two.values()] == [digest(job) for job in one.values()]
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


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_jobs import JobPool, pretraining
if __name__ == "__main__":
    with JobPool(1) as pool:
        pool.run({0: pretraining(Path(sys.argv[1]) / "long", Path(sys.argv[2]), epochs=10000)})
"""


def test_no_training_outlives_a_killed_quick_start(tmp_path: Path, photos: Path):
    (tmp_path / "killed.py").write_text(KILLED)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "killed.py"), str(tmp_path), str(photos), str(Path(__file__).parent)]
    )
    try:
        metrics = tmp_path / "long" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert metrics.exists()
        children = child_processes(parent.pid)
        assert children
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 20
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not any(map(alive, children))
    finally:
        parent.kill()


def child_processes(pid: int) -> list[int]:
    psutil = pytest.importorskip("psutil")
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
