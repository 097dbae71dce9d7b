"""The PyTorch row: the run's own model, eager, without gradients, with the threads it was asked to use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime import open_session
from edgemim.errors import UserError
from edgemim.export.torch_session import open_torch_session


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
