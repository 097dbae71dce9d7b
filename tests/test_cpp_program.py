"""The C++ program on OpenVINO gives the answers that edgemim gives, on real photos (`make test-cpp` builds it)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_artifact import tiny_artifact

from edgemim.edge.artifact import Artifact
from edgemim.edge.images import load_image
from edgemim.edge.runtime import open_session


@pytest.fixture(scope="module")
def program() -> Path:
    """The built program; `make test-cpp` says where it is."""
    built = os.environ.get("EDGEMIM_CPP")
    if not built:
        pytest.skip("the C++ program is not built: run `make test-cpp`")
    pytest.importorskip("openvino")
    return Path(built) / "classify_openvino"


@pytest.fixture(scope="module")
def pictures(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twenty real photos: crops as they are, whole pictures larger than the model's square, every orientation, PPM."""
    from skimage import data

    folder = tmp_path_factory.mktemp("pictures")
    found = [str(path) for path in sorted(photos.glob("*/*.jpg"))[::10]]
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=90)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(data.coffee()[40:300, 100:500]).save(folder / f"turned{orientation}.jpg", exif=exif, quality=85)
    Image.fromarray(data.chelsea()[:77, :201]).save(folder / "plain.ppm")
    Image.fromarray(data.rocket()).convert("L").save(folder / "grey.jpg")
    found += sorted(str(path) for path in folder.iterdir())
    assert len(found) == 20
    return found


@pytest.fixture(scope="module", params=["bicubic", "bilinear"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    artifact = tiny_artifact(tmp_path_factory.mktemp("cpp") / "artifact", size=48)
    facts = artifact.manifest.preprocessing.model_copy(update={"interpolation": request.param})
    artifact.manifest = artifact.manifest.model_copy(update={"preprocessing": facts})
    artifact.save_manifest()
    return artifact


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *words], capture_output=True, text=True, timeout=60)


def test_the_same_answers_on_twenty_photos(program: Path, artifact: Artifact, pictures: list[str]) -> None:
    done = run(program, str(artifact.folder), *pictures, "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    session = open_session(artifact, runtime="openvino", threads=1)
    prepare = artifact.manifest.preprocessing
    expected = [session.run({"images": prepare(load_image(path))[None]})["logits"][0] for path in pictures]
    assert [one["image"] for one in found] == pictures
    for one, logits in zip(found, expected, strict=True):
        assert one["label"] == artifact.manifest.labels[int(logits.argmax())]
        np.testing.assert_allclose(one["logits"], logits, atol=1e-5, err_msg=one["image"])
    plain = run(program, str(artifact.folder), pictures[0]).stdout.split("\t")
    assert plain[:2] == [pictures[0], found[0]["label"]] and float(plain[2]) == pytest.approx(
        found[0]["probability"], abs=1e-4
    )


def test_mistakes_are_one_sentence(program: Path, artifact: Artifact, pictures: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(pictures[0]).read_bytes()[:400])
    mistakes = [
        ([str(tmp_path), pictures[0]], "has no manifest.json"),
        ([str(artifact.folder), str(tmp_path / "none.jpg")], "cannot be opened"),
        ([str(artifact.folder), str(broken)], "broken.jpg"),
        ([str(artifact.folder), str(artifact.folder / "manifest.json")], "neither a JPEG nor"),
        ([str(artifact.folder), pictures[0], "--file", "onnx-int3"], "no model 'onnx-int3'"),
        ([str(artifact.folder)], "usage"),
    ]
    for words, reason in mistakes:
        done = run(program, *words)
        assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1, (words, done.stderr)
