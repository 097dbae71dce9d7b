"""Trackers as artifacts: parity on real pairs in each runtime, the loop at the edge runs them, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from small_tracker import small_tracker  # noqa: E402

from edgemim.commands.export import ExportConfig, export_model  # noqa: E402
from edgemim.edge.artifact import Artifact  # noqa: E402
from edgemim.edge.tracking.tracker import Tracker  # noqa: E402
from edgemim.errors import GateRefused, UserError  # noqa: E402
from edgemim.export.tracker_session import open_torch_tracker  # noqa: E402
from edgemim.export.tracking import graphs_of, measure_tracker_parity, open_tracker  # noqa: E402
from edgemim.tasks import TrackingTask, load_task  # noqa: E402

torch.set_num_threads(1)


FORMS = {
    "joint": ("joint", ()),
    "cached": ("cached", ()),
    "matching": ("joint", (1, 2)),
    "cached-matching": ("cached", (2,)),
}


@pytest.fixture(scope="module", params=FORMS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tracker(tmp_path_factory.mktemp(request.param), *FORMS[request.param])


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export_model(ExportConfig(run=run, out=run.parent / "artifact", parity_images=8))
    return run.parent / "artifact"


def task_of(run: Path) -> TrackingTask:
    task = load_task(run)
    assert isinstance(task, TrackingTask)
    return task


def test_an_artifact_says_how_it_is_fed_and_agrees(run: Path, exported: Path) -> None:
    artifact = Artifact.open(exported)
    manifest = artifact.manifest
    cached = "cached" in run.parent.name
    assert manifest.task == "tracking" and manifest.tracking is not None
    assert manifest.tracking.form == ("cached" if cached else "joint")
    assert set(manifest.files) == ({"onnx-fp32", "onnx-fp32-template"} if cached else {"onnx-fp32"})
    assert manifest.parity["relative_error"] < 1e-4 and manifest.parity["weights_identical"] > 20
    assert manifest.parity["images"] == (8 if cached else 7)  # where tokens are dropped the farthest is spared


def test_the_loop_at_the_edge_follows_as_pytorch_does(run: Path, exported: Path) -> None:
    frames = sorted((run.parent / "walks").glob("*/*.jpg")) or sorted((run.parent / "walks").glob("*/*/*.jpg"))
    images = [np.asarray(Image.open(path).convert("RGB")) for path in frames[:6]]
    found = []
    for tracker in (Tracker.open(exported), open_torch_tracker(run)):
        tracker.init(images[0], (30, 30, 40, 30))
        found.append([tracker.update(image).box for image in images[1:]])
    np.testing.assert_allclose(*found, atol=0.05)


def test_a_moved_weight_is_refused(run: Path) -> None:
    task = task_of(run)
    sessions = {"onnxruntime": open_tracker(Artifact.open(run.parent / "artifact"))}
    task.model.state_dict()["head.score.4.bias"].add_(0.1)
    worse = measure_tracker_parity(task, sessions, pairs=4, elimination=True)["onnxruntime"]
    assert worse.relative_error > 1e-3


def test_options_that_do_not_go_with_a_tracker(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one pair at a time"):
        export_model(ExportConfig(run=run, out=tmp_path / "a", fixed_batch=4))
    with pytest.raises(GateRefused, match="parity refused"):
        export_model(ExportConfig(run=run, out=tmp_path / "b", parity_images=2, tolerance=1e-12))
    assert not (tmp_path / "b").exists()


def test_graphs_and_their_names(run: Path) -> None:
    task = task_of(run)
    names = [(graph.suffix, list(graph.inputs), graph.outputs) for graph in graphs_of(task.model, elimination=True)]
    maps = ("score", "offset", "size")
    if task.model.size.attention == "joint":
        assert names == [("", ["template", "search"], maps)]
    else:
        caches = ("cache_k", "cache_v", "cache_m")[: 3 if task.model.size.matching_blocks else 2]
        assert names == [("-template", ["template"], caches), ("", ["search", *caches], maps)]


def test_dense_on_request(run: Path, tmp_path: Path) -> None:
    if "cached" in run.parent.name:
        pytest.skip("nothing is eliminated in the cached form")
    export_model(ExportConfig(run=run, out=tmp_path / "dense", parity_images=2, elimination=False))
    assert Artifact.open(tmp_path / "dense").manifest.parity["relative_error"] < 1e-4


def test_the_template_cached_on_request(run: Path, tmp_path: Path) -> None:
    """Of a tracker that was trained jointly: two graphs, compared with PyTorch in that form, and other answers."""
    config = ExportConfig(run=run, out=tmp_path / "a", parity_images=4, cached=True)
    if "cached" in run.parent.name:
        with pytest.raises(UserError, match="leave --cached out"):
            export_model(config)
        return
    export_model(config)
    artifact, task = Artifact.open(tmp_path / "a"), task_of(run)
    assert set(artifact.manifest.files) == {"onnx-fp32", "onnx-fp32-template"}
    assert artifact.manifest.parity["relative_error"] < 1e-4
    inputs, _ = next(iter(task.evaluation_pairs(1)))
    joint = task.model.eval()(*(torch.from_numpy(inputs[name]) for name in ("template", "search")), keep_rate=1.0)
    assert not np.allclose(open_tracker(artifact).run(inputs)["score"], joint.score.detach().numpy(), atol=1e-5)


def test_pictures_that_are_gone_are_told(run: Path, tmp_path: Path) -> None:
    shutil.move(run.parent / "walks", tmp_path / "walks")
    try:
        with pytest.raises(UserError, match="no longer as they were; give --data DIR"):
            export_model(ExportConfig(run=run, out=tmp_path / "a"))
        export_model(ExportConfig(run=run, out=tmp_path / "b", data=tmp_path / "walks", parity_images=2))
    finally:
        shutil.move(tmp_path / "walks", run.parent / "walks")
