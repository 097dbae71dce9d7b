"""A trained task and its FP32 artifact, made once for the tests of the bridge."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_run import small_run
from small_segmentation import small_segmentation_run


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small fine-tuned run on real photo crops, with its data still there."""
    pytest.importorskip("torch")
    return small_run(tmp_path_factory.getbasetemp() / "small_run")


@pytest.fixture(scope="session")
def task(trained_run: Path):
    """The run's task."""
    from edgemim.tasks import load_task

    return load_task(trained_run)


@pytest.fixture(scope="session")
def fp32_artifact(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported artifact; copy it before changing it."""
    from edgemim.commands.export import ExportConfig, export_model

    out = tmp_path_factory.mktemp("bridge") / "artifact"
    export_model(ExportConfig(run=trained_run, out=out, openvino=_has_openvino()))
    return out


@pytest.fixture
def artifact(fp32_artifact: Path, tmp_path: Path):
    """A copy of the artifact for one test."""
    from edgemim.edge.artifact import Artifact

    return Artifact.open(shutil.copytree(fp32_artifact, tmp_path / "artifact"))


@pytest.fixture(scope="session")
def segmentation_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small segmentation run on real photos, with its data still there."""
    return small_segmentation_run(tmp_path_factory.getbasetemp() / "small_segmentation")


@pytest.fixture(scope="session")
def fp32_segmenters(segmentation_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Exported artifacts of that run by the side of their square: as trained, and another; copy before changing."""
    from edgemim.commands.export import ExportConfig, export_model

    out = tmp_path_factory.mktemp("segmenters")
    for size in (32, 48):
        export_model(ExportConfig(run=segmentation_run, out=out / str(size), image_size=size, parity_images=4))
    return {size: out / str(size) for size in (32, 48)}


@pytest.fixture
def segmenter(fp32_segmenters: dict[int, Path], tmp_path: Path):
    """A copy of the segmentation artifact for one test."""
    from edgemim.edge.artifact import Artifact

    return Artifact.open(shutil.copytree(fp32_segmenters[32], tmp_path / "segmenter"))


@pytest.fixture
def segmentation_task(segmentation_run: Path):
    """That run's task, anew."""
    from edgemim.tasks import load_task

    return load_task(segmentation_run)


@pytest.fixture(scope="session")
def held_out_images(task) -> np.ndarray:
    """32 normalised held-out images of all classes."""
    return np.concatenate([images for images, _ in task.evaluation_batches(32)])


def _has_openvino() -> bool:
    import importlib.util

    return importlib.util.find_spec("openvino") is not None
