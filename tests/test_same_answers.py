"""One artifact, twenty real pictures: PyTorch, each runtime and each stand-alone Python program give the same answers.

The C++ program and the browser page: test_cpp_program.py and test_browser_page.py, on the same pictures and artifact.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from small_artifact import answers, small_artifact
from twenty_images import twenty_images

from edgemim.edge.artifact import Artifact
from edgemim.edge.images import load_image

PROGRAMS = Path(__file__).parent.parent / "export" / "python"
FP32 = [("onnx-fp32", "onnxruntime"), ("onnx-fp32", "openvino"), ("openvino-fp32", "openvino")]
INT8 = [("onnx-int8", "onnxruntime"), ("openvino-int8", "openvino")]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return twenty_images(tmp_path_factory.mktemp("twenty"))


@pytest.fixture(scope="module")
def reference(artifact: Artifact, pictures: list[Path]) -> np.ndarray:
    """What PyTorch says."""
    import torch

    from edgemim.tasks import load_task

    module = load_task(Path(artifact.manifest.source["run"])).export_module()
    images = np.stack([artifact.manifest.preprocessing(load_image(path)) for path in pictures])
    with torch.inference_mode():
        return module(torch.from_numpy(images)).numpy()


def program(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(PROGRAMS / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_pictures_tell_answers_apart(reference: np.ndarray) -> None:
    """Each class is somebody's answer, and no two pictures but the turned ones have the same."""
    assert set(reference.argmax(1)) == set(range(4))
    assert len({tuple(np.round(row, 2)) for row in reference}) >= 12
    assert np.abs(reference).max() > 2


@pytest.mark.parametrize(("key", "runtime"), FP32)
def test_float_files_answer_as_pytorch(
    artifact: Artifact, pictures: list[Path], reference: np.ndarray, key: str, runtime: str
) -> None:
    np.testing.assert_allclose(answers(artifact, key, runtime, pictures), reference, atol=1e-4)


@pytest.mark.parametrize(("key", "runtime"), INT8)
def test_int8_files_name_the_same_class(
    artifact: Artifact, pictures: list[Path], reference: np.ndarray, key: str, runtime: str
) -> None:
    found = answers(artifact, key, runtime, pictures)
    assert np.abs(found - reference).max() < 0.5
    sure = np.diff(np.sort(reference)[:, -2:])[:, 0] > 0.5
    assert sure.sum() >= 15
    assert (found.argmax(1) == reference.argmax(1))[sure].all()


@pytest.mark.parametrize(
    ("name", "key", "runtime"),
    [
        ("classify_onnxruntime.py", "onnx-fp32", "onnxruntime"),
        ("classify_onnxruntime.py", "onnx-int8", "onnxruntime"),
        ("classify_openvino.py", "onnx-fp32", "openvino"),
        ("classify_openvino.py", "openvino-fp32", "openvino"),
        ("classify_openvino.py", "openvino-int8", "openvino"),
    ],
)
def test_programs_answer_as_edgemim(
    artifact: Artifact, pictures: list[Path], name: str, key: str, runtime: str
) -> None:
    alone = name == "classify_onnxruntime.py"
    words = [artifact.file(key)] if alone else [artifact.folder, "--file", key]
    done = program(name, *words, *pictures, "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = answers(artifact, key, runtime, pictures)
    assert [one["image"] for one in found] == list(map(str, pictures))
    assert [one["label"] for one in found] == [artifact.manifest.labels[best] for best in expected.argmax(1)]
    np.testing.assert_allclose([one["logits"] for one in found], expected, atol=1e-5)
