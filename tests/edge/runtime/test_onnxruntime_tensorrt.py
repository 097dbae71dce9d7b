"""The tensorrt provider: asked for under its name, refused where it cannot be; with a GPU, its answers."""

from pathlib import Path

import numpy as np
import pytest
from tiny_artifact import tiny_artifact

from edgemim.edge.runtime import missing, onnxruntime_tensorrt, open_session
from edgemim.errors import MissingLibrary, NoGpu

NAME = "onnxruntime-tensorrt"


@pytest.mark.skipif(missing(NAME) is None, reason="there is a GPU and the provider here")
def test_without_the_provider_opening_is_refused_and_never_falls_back(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path)
    with pytest.raises((MissingLibrary, NoGpu), match="onnxruntime-tensorrt"):
        open_session(artifact, runtime=NAME)
    # Past the first check too: this build of ONNX Runtime would compute on the CPU.
    with pytest.raises(MissingLibrary, match="cannot load its TensorrtExecutionProvider and would compute on the CPU"):
        onnxruntime_tensorrt.open_file(artifact, "onnx-fp32", 1)


@pytest.mark.gpu
@pytest.mark.skipif(missing(NAME) is not None, reason=str(missing(NAME)))
def test_on_a_gpu_its_answers_are_the_cpus(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path, width=256, layers=4)
    session = open_session(artifact, runtime=NAME)
    assert session.runtime == NAME
    images = np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32)
    found, expected = (each.run({"images": images})["logits"] for each in (session, open_session(artifact)))
    assert np.abs(found - expected).max() <= 1e-2 * max(1.0, np.abs(expected).max())
