"""What a child times is what its row says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_run import PHOTOS
from tiny_artifact import tiny_artifact
from tiny_tracker import tiny_tracker

from edgemim.commands.benchmark_cases import open_case, run_folder


def test_the_pytorch_case_computes_what_its_run_does(tmp_path: Path, small_finetune_run: Path) -> None:
    import torch

    from edgemim.tasks import load_task

    artifact = tiny_artifact(tmp_path / "a", size=64, labels=PHOTOS, source={"run": str(small_finetune_run)})
    call, facts = open_case(str(artifact.folder), "fp32", "pytorch", batch=2, threads=1)
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    expected = load_task(small_finetune_run).export_module()(torch.from_numpy(images)).detach().numpy()
    found = call()
    assert facts == {"precision": "fp32", "images_per_call": 2}
    assert isinstance(found, dict)
    assert np.allclose(found["logits"], expected, atol=1e-5)
    assert torch.get_num_threads() == 1


def test_the_throughput_case_counts_its_wave(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'edgemim[openvino]'")
    artifact = tiny_artifact(tmp_path / "a")
    call, facts = open_case(str(artifact.folder), "onnx-fp32", "openvino-throughput", batch=3, threads=1)
    call()
    assert facts["images_per_call"] == 3 * 4 * facts["requests"]


def test_a_tracker_s_graph_gets_all_its_inputs(tmp_path: Path) -> None:
    artifact = tiny_tracker(tmp_path / "a", "cached")
    call, _ = open_case(str(artifact.folder), "onnx-fp32", "onnxruntime", batch=1, threads=1)
    found = call()
    assert isinstance(found, dict) and set(found) == {"score", "size", "offset"}


def test_a_run_beside_the_artifact_is_found(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", source={"run": "../run"})
    (tmp_path / "run").mkdir()
    found = run_folder(artifact)
    assert found is not None and found.samefile(tmp_path / "run")
    assert run_folder(tiny_artifact(tmp_path / "b")) is None
