"""PyTorch's side of a comparison computes what the artifact's files compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_tracker import small_tracker
from tiny_artifact import tiny_artifact

from edgemim.commands.export import ExportConfig, export_model
from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime import open_session
from edgemim.export.torch_baseline import open_baseline


@pytest.fixture(scope="module", params=["joint", "cached", "joint-cached"])
def tracker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    root = tmp_path_factory.mktemp(request.param)
    trained, _, exported = request.param.partition("-")
    run = small_tracker(root, trained)
    export_model(ExportConfig(run=run, out=root / "artifact", parity_images=2, cached=bool(exported)))
    return run, Artifact.open(root / "artifact")


def test_trackers_graph_by_graph(tracker: tuple[Path, Artifact]) -> None:
    run, artifact = tracker
    cached = "onnx-fp32-template" in artifact.manifest.files
    template = None
    for suffix in ("-template", "") if cached else ("",):
        session, inputs = open_baseline(artifact, run, "fp32" + suffix, batch=1, threads=1, compiled=False)
        found = session.run(inputs)
        exported = open_session(artifact, "onnx-fp32" + suffix, threads=1)
        own = inputs if template is None else {"search": inputs["search"], **template}
        expected = exported.run(own)
        if suffix:
            template = expected  # laid out otherwise in the file than in PyTorch
        else:
            assert set(found) == set(expected) == {"score", "size", "offset"}
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, atol=1e-4)


def test_the_manifest_knows_the_arithmetic(tracker: tuple[Path, Artifact]) -> None:
    gflop = tracker[1].manifest.gflop
    assert set(gflop) == {key for key in tracker[1].manifest.files if key.startswith("onnx-fp32")}
    assert all(value > 0 for value in gflop.values())


def test_a_peer_needs_no_run(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", size=160, source={"timm": "test_vit"})
    session, inputs = open_baseline(artifact, None, "fp32", batch=2, threads=1, compiled=False)
    assert inputs["images"].shape == (2, 3, 160, 160)
    assert session.run(inputs)["logits"].shape == (2, 1000)
