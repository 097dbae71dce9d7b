"""The C++ program on OpenVINO gives the answers that edgemim gives, on twenty real pictures (`make test-cpp` builds it)."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_artifacts import ATTACKS, change_manifest
from small_artifact import answers, small_artifact
from twenty_images import twenty_images

from edgemim.edge.artifact import Artifact


@pytest.fixture(scope="module")
def program() -> Path:
    """The built program; `make test-cpp` says where it is."""
    built = os.environ.get("EDGEMIM_CPP")
    if not built:
        pytest.skip("the C++ program is not built: run `make test-cpp`")
    return Path(built) / "classify_openvino"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return twenty_images(tmp_path_factory.mktemp("twenty"), "ppm")


@pytest.fixture(scope="module")
def trained(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory.getbasetemp())


@pytest.fixture
def artifact(trained: Artifact, tmp_path: Path) -> Artifact:
    return Artifact.open(shutil.copytree(trained.folder, tmp_path / "artifact"))


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, timeout=60)


def found_by(program: Path, artifact: Artifact, key: str, pictures: list[Path]) -> list[dict]:
    done = run(program, artifact.folder, *pictures, "--file", key, "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("key", ["onnx-fp32", "openvino-fp32", "openvino-int8"])
def test_the_same_answers_on_twenty_pictures(program: Path, trained: Artifact, pictures: list[Path], key: str) -> None:
    found, expected = found_by(program, trained, key, pictures), answers(trained, key, "openvino", pictures)
    assert [one["image"] for one in found] == list(map(str, pictures))
    assert [one["label"] for one in found] == [trained.manifest.labels[best] for best in expected.argmax(1)]
    np.testing.assert_allclose([one["logits"] for one in found], expected, atol=1e-5)


def test_the_other_filter_and_a_part_cut_off(program: Path, artifact: Artifact, pictures: list[Path]) -> None:
    change_manifest(artifact.folder, "preprocessing.interpolation", "bilinear")
    change_manifest(artifact.folder, "preprocessing.crop_pct", 0.9)
    expected = answers(Artifact.open(artifact.folder), "openvino-fp32", "openvino", pictures)
    found = found_by(program, artifact, "openvino-fp32", pictures)
    np.testing.assert_allclose([one["logits"] for one in found], expected, atol=1e-5)


def test_for_people(program: Path, artifact: Artifact, pictures: list[Path]) -> None:
    change_manifest(artifact.folder, "labels", ["\x1b[31mred\n"] * 4)
    [line] = run(program, artifact.folder, pictures[0]).stdout.splitlines()
    name, label, probability = line.split("\t")
    assert (name, label) == (str(pictures[0]), "?[31mred?") and 0.25 < float(probability) <= 1


@pytest.mark.parametrize(
    ("attack", "message"), [(one.do, one.message) for one in ATTACKS], ids=[one.name for one in ATTACKS]
)
def test_a_hostile_artifact_is_refused(
    program: Path, artifact: Artifact, pictures: list[Path], attack: Callable[[Path], None], message: str
) -> None:
    attack(artifact.folder)
    done = run(program, artifact.folder, pictures[0], "--file", "openvino-fp32")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("classify_openvino: "), done.stderr
    assert message in done.stderr


def test_mistakes_are_one_sentence(program: Path, artifact: Artifact, pictures: list[Path], tmp_path: Path) -> None:
    jpeg = next(path for path in pictures if path.suffix == ".jpg")
    (tmp_path / "broken.jpg").write_bytes(jpeg.read_bytes()[:400])
    large = jpeg.read_bytes()
    at = large.index(b"\xff\xc0") + 5  # height and width of the frame header
    (tmp_path / "large.jpg").write_bytes(large[:at] + b"\xff\xdc\xff\xdc" + large[at + 4 :])
    mistakes = [
        ([tmp_path, pictures[0]], "has no manifest.json"),
        ([artifact.folder, tmp_path / "none.jpg"], "cannot be opened"),
        ([artifact.folder, tmp_path / "broken.jpg"], "broken.jpg"),
        ([artifact.folder, tmp_path / "large.jpg"], "large.jpg: is too large"),
        ([artifact.folder, artifact.folder / "manifest.json"], "neither a JPEG nor"),
        ([artifact.folder, pictures[0], "--file", "onnx-int3"], "no model 'onnx-int3'"),
        ([artifact.folder, pictures[0], "--threads", "many"], "--threads many is not a whole number"),
        ([artifact.folder], "usage"),
    ]
    for words, reason in mistakes:
        done = run(program, *words)
        assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1, (words, done.stderr)
