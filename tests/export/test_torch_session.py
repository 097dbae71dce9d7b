"""The PyTorch row: the run's own model, eager, without gradients, with the threads it was asked to use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime import open_session
from edgemim.errors import MissingLibrary, UserError
from edgemim.export.torch_session import TorchSession, open_torch_session


def test_answers_of_the_run(trained_run: Path, artifact, held_out_images: np.ndarray) -> None:
    session = open_torch_session(trained_run, threads=1)
    assert (session.runtime, session.precision, session.threads) == ("pytorch", "fp32", 1)
    logits = session.run({"images": held_out_images})["logits"]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, open_session(artifact).run({"images": held_out_images})["logits"], atol=2e-5)


def test_threads_are_set_for_each_run(trained_run: Path, held_out_images: np.ndarray) -> None:
    before = torch.get_num_threads()
    try:
        session = open_torch_session(trained_run, threads=2)
        torch.set_num_threads(1)
        session.run({"images": held_out_images[:1]})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert open_torch_session(trained_run).threads == usable_cpus()


def test_user_mistakes(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="threads is -1"):
        open_torch_session(trained_run, threads=-1)
    with pytest.raises(UserError):
        open_torch_session(tmp_path)
    session = open_torch_session(trained_run, threads=1)
    with pytest.raises(UserError, match="input 'images'"):
        session.run({"images": np.zeros((1, 3, 32, 32), np.float32)})


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler: apt install g++")
def test_compiled_by_inductor_it_answers_the_same() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Softmax(-1))
    values = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    eager, compiled = (TorchSession(module, {"x": (None, 8)}, ["y"], 1, compiled=choice) for choice in (False, True))
    assert (eager.runtime, compiled.runtime) == ("pytorch", "pytorch-compiled")
    np.testing.assert_allclose(compiled.run(values)["y"], eager.run(values)["y"], atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_without_a_compiler_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingLibrary, match=r"needs a C\+\+ compiler .* apt install g\+\+"):
        TorchSession(torch.nn.Linear(2, 2), {"x": (None, 2)}, ["y"], 1, compiled=True)
