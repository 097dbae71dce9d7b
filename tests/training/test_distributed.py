"""Devices, and ranks that agree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_training import NANO  # noqa: F401 (one thread)

from edgemim.errors import NoGpu, UserError
from edgemim.training.distributed import World, job_name, open_world, pick_device, restarted_by_agent


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="auto, cpu or cuda"):
        pick_device("cude")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(NoGpu):
        pick_device("cuda")


def test_alone_everything_is_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    with open_world("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.any(True) and not world.any(False)
        assert world.any_of(True, False) == [True, False]
        assert world.on_main(lambda: 7) == 7
        assert world.gather(["x"]) == [["x"]]
        assert world.mean_(torch.tensor(3.0)) == 3.0
        world.barrier()
    assert not restarted_by_agent()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted_by_agent()


def test_two_ranks_agree(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = textwrap.dedent(
        """
        import torch
        from edgemim.errors import UserError
        from edgemim.training.distributed import open_world
        torch.set_num_threads(1)
        with open_world("cpu") as world:
            assert world.size == 2
            assert world.is_main == (world.rank == 0)
            assert world.any(world.rank == 1) and not world.any(False)
            assert world.any_of(world.rank == 0, False, world.rank == 1) == [True, False, True]
            assert world.on_main(lambda: ("from", world.rank)) == ("from", 0)

            def refuse():
                assert world.is_main, "called on another rank"
                raise UserError("no room")

            try:
                world.on_main(refuse)
                raise AssertionError("went on after a refusal")
            except UserError as error:
                assert str(error) == "no room"
            assert world.gather([]) == []
            assert world.gather(["a"] if world.rank else []) == [[], ["a"]]
            assert world.mean_(torch.tensor([world.rank, 4.0])).tolist() == [0.5, 4.0]
            world.barrier()
            print("agreed")
        """
    )
    ranks = []
    for rank in range(2):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-c", program]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks.append(subprocess.Popen(command, env={**os.environ, **variables}, cwd=tmp_path, **pipes))
    for process in ranks:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "agreed" in out


def test_a_job_has_a_name_under_torchrun_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert job_name() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night-shift")
    assert job_name() == "night-shift"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's default: the agent itself is the job
    assert str(os.getppid()) in (job_name() or "")


def test_other_ranks_do_not_write() -> None:
    assert not World(1, 2, torch.device("cpu")).is_main
