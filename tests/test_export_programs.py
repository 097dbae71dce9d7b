import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_artifact import tiny_artifact

from edgemim.commands.predict import PredictConfig, predict
from edgemim.edge.artifact import Artifact, describe_file
from edgemim.edge.images import load_image
from edgemim.edge.runtime import open_session

PROGRAMS = Path(__file__).parent.parent / "export"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_artifact(tmp_path_factory.mktemp("programs") / "artifact", int8=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One picture in every form that a decoder can get wrong."""
    folder = tmp_path_factory.mktemp("pictures")
    rows, columns = np.mgrid[0:70, 0:110]
    red, green, blue = rows * 3 % 256, columns * 2 % 256, (rows * columns) % 256
    colour = Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))
    alpha = colour.copy()
    alpha.putalpha(Image.fromarray((columns * 2).astype(np.uint8)))
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.save(folder / "plain.png")
    colour.save(folder / "turned.jpg", exif=turned)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("L").save(folder / "grey.png")
    Image.fromarray((rows * 900).astype(np.uint16)).save(folder / "deep.png")
    colour.quantize(32).save(folder / "palette.gif")
    alpha.save(folder / "alpha.png")
    colour.resize((1, 400)).save(folder / "thin.png")
    return sorted(str(path) for path in folder.iterdir())


def run(program: str, *words: str) -> str:
    command = [sys.executable, "-I", str(PROGRAMS / program), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(artifact: Artifact, key: str, runtime: str, pictures: list[str]) -> list[tuple[str, np.ndarray]]:
    session = open_session(artifact, key, runtime=runtime, threads=1)
    prepare = artifact.manifest.preprocessing
    logits = [session.run({"images": prepare(load_image(path))[None]})["logits"][0] for path in pictures]
    return [(artifact.manifest.labels[int(row.argmax())], row) for row in logits]


def compare(output: str, expected: list[tuple[str, np.ndarray]], pictures: list[str]) -> None:
    found = [json.loads(line) for line in output.splitlines()]
    assert [one["image"] for one in found] == pictures
    for one, (label, logits) in zip(found, expected, strict=True):
        assert one["label"] == label
        assert np.allclose(one["logits"], logits, atol=1e-5), one["image"]


@pytest.mark.parametrize("key", ["onnx-fp32", "onnx-int8"])
def test_onnxruntime_program_needs_the_file_alone(
    artifact: Artifact, pictures: list[str], key: str, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(artifact.file(key).read_bytes())
    output = run("classify_onnxruntime.py", str(alone), *pictures, "--json", "--threads", "1")
    compare(output, answers(artifact, key, "onnxruntime", pictures), pictures)


def test_openvino_program_reads_both_formats(artifact: Artifact, pictures: list[str]) -> None:
    openvino = pytest.importorskip("openvino")
    output = run("classify_openvino.py", str(artifact.folder), *pictures, "--json")
    compare(output, answers(artifact, "onnx-fp32", "openvino", pictures), pictures)
    from edgemim.edge.runtime.openvino import core

    openvino.save_model(core().read_model(artifact.file()), artifact.folder / "m.xml", compress_to_fp16=False)
    entry = describe_file(artifact.folder, "m.xml", format="openvino", precision="fp32", companions=["m.bin"])
    files = {**artifact.manifest.files, "openvino-fp32": entry}
    artifact.manifest = artifact.manifest.model_copy(update={"files": files})
    artifact.save_manifest()
    output = run("classify_openvino.py", str(artifact.folder), *pictures, "--json", "--file", "openvino-fp32")
    compare(output, answers(Artifact.open(artifact.folder), "openvino-fp32", "openvino", pictures), pictures)


def test_plain_output_says_what_predict_says(artifact: Artifact, pictures: list[str], tmp_path: Path) -> None:
    expected = predict(
        PredictConfig(artifact=artifact.folder, images=tuple(map(Path, pictures)), out=tmp_path / "out", top=1)
    )
    lines = [line.split("\t") for line in run("classify_onnxruntime.py", str(artifact.file()), *pictures).splitlines()]
    best = [(entry["image"], entry["predictions"][0]) for entry in expected]
    assert lines == [[image, one["label"], f"{one['probability']:.4f}"] for image, one in best]


@pytest.mark.parametrize("program", sorted(path.name for path in PROGRAMS.glob("*.py")))
def test_programs_stand_alone(program: str) -> None:
    text = (PROGRAMS / program).read_text()
    assert "import edgemim" not in text
    assert "from edgemim" not in text
    assert "usage" in run(program, "--help")


def test_the_onnxruntime_program_is_short() -> None:
    assert len((PROGRAMS / "classify_onnxruntime.py").read_text().splitlines()) <= 60


def test_readme_begins_with_the_place_of_the_library_code() -> None:
    first = (PROGRAMS / "README.md").read_text().splitlines()[0]
    assert "edgemim/export" in first
    assert "edgemim/edge" in first
