"""With several requests in flight the answers stay those of one after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_artifact import tiny_artifact

from edgemim.edge.runtime import open_session
from edgemim.errors import ModelRefused, UserError

pytest.importorskip("openvino", reason="pip install 'edgemim[openvino]'")
from edgemim.edge.runtime.openvino_throughput import open_file


def test_the_answers_are_the_latency_session_s(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    session = open_file(artifact, "onnx-fp32", 2)
    assert (session.runtime, session.precision, session.threads) == ("openvino-throughput", "fp32", 2)
    assert session.requests >= session.streams >= 1
    assert session.runs_per_wave == 4 * session.requests
    for seed in range(2):
        images = {"images": np.random.default_rng(seed).standard_normal((2, 3, 16, 16)).astype(np.float32)}
        session.wave(images)
        expected = open_session(artifact, runtime="openvino").run(images)["logits"]
        np.testing.assert_allclose(session.run(images)["logits"], expected, atol=1e-5)
    session.wave({"images": np.zeros((1, 3, 16, 16), np.float32)})
    np.testing.assert_allclose(session.run(images)["logits"], expected, atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    session = open_file(tiny_artifact(tmp_path / "a"), "onnx-fp32", 1)
    with pytest.raises(UserError, match="input 'images'"):
        session.run({"images": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(ModelRefused, match="NoSuchOperator"):
        open_file(tiny_artifact(tmp_path / "b", operator="NoSuchOperator"), "onnx-fp32", 1)
