"""A really trained, exported and quantised classifier for the tests of all programs, and the answers that it gives."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_run import small_run

from edgemim.edge.artifact import Artifact
from edgemim.edge.images import load_image
from edgemim.edge.runtime import open_session

KEYS = ("onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8")


@functools.cache
def small_artifact(root: Path) -> Artifact:
    """A ViT trained for seconds on photo crops, with the files of KEYS; made once for a folder, copy before changing."""
    for name in ("torch", "openvino", "nncf"):
        pytest.importorskip(name)
    from edgemim.commands.export import ExportConfig, export_model

    run = small_run(root / "small_run")
    # Forced: how fast it is on a busy machine is of no interest here. The quality gate is checked below.
    options = {"openvino": True, "int8": True, "force": True, "threads": (1,), "seconds": 0.05}
    export_model(ExportConfig(run=run, out=root / "small_artifact", images=60, calibration=60, **options))
    artifact = Artifact.open(root / "small_artifact")
    assert set(artifact.manifest.files) == set(KEYS)
    assert all(report["agreement"] >= 98 for report in artifact.manifest.quantization.values())
    return artifact


def answers(artifact: Artifact, key: str, runtime: str, paths: Sequence[Path | str]) -> np.ndarray:
    """Logits [images, classes] of edgemim's session, one picture at a time."""
    session, prepare = open_session(artifact, key, runtime=runtime, threads=1), artifact.manifest.preprocessing
    return np.concatenate([session.run({"images": prepare(load_image(path))[None]})["logits"] for path in paths])
