import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from tiny_artifact import tiny_artifact
from tiny_tracker import moving_target, tiny_tracker, write_video

from edgemim.commands.predict import PredictConfig, predict
from edgemim.edge.artifact import Artifact, describe_file
from edgemim.edge.images import load_image
from edgemim.edge.runtime import open_session
from edgemim.edge.tracking.boxes import iou
from edgemim.edge.tracking.frames import open_frames
from edgemim.edge.tracking.tracker import Tracker

EXPORT = Path(__file__).parent.parent / "export"
PROGRAMS = EXPORT / "python"


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


@pytest.mark.parametrize("form", ["joint", "cached"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_tracking_programs_follow_as_edgemim_does(
    tmp_path: Path, form: Literal["joint", "cached"], runtime: str
) -> None:
    """In a small video, so that the target begins at the lower border and ends at the right one."""
    pytest.importorskip(runtime)
    artifact = tiny_tracker(tmp_path / "artifact", form, size_rate=0.1 if form == "cached" else 1.0)
    tracker = Tracker.open(artifact, runtime=runtime, threads=1)
    images, boxes = moving_target(12)
    video = write_video(tmp_path / "video.avi", [np.ascontiguousarray(image[:102, :136]) for image in images])
    words = [str(tmp_path / "artifact"), str(video), ",".join(map(str, boxes[0])), "--threads", "1"]
    rows = [list(map(float, line.split("\t"))) for line in run(f"track_{runtime}.py", *words).splitlines()]
    with open_frames(video, "opencv") as frames:
        tracker.init(frames.first(), boxes[0])
        tracked = [tracker.update(image) for image in frames]
    assert [row[0] for row in rows] == list(range(1, 12))
    np.testing.assert_allclose([row[1:5] for row in rows], [one.box for one in tracked], atol=0.0051)
    np.testing.assert_allclose([row[5] for row in rows], [one.score for one in tracked], atol=5.1e-5)
    assert iou(np.array([row[1:5] for row in rows]), np.array(boxes[1:])).min() > 0.5


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        ("track_onnxruntime.py", ["ARTIFACT", "nothing.avi", "1,2,3,4"], "nothing.avi is no video"),
        ("track_onnxruntime.py", ["ARTIFACT", "nothing.avi", "1,2,3,0"], "box 1,2,3,0 is not LEFT,TOP"),
        ("track_onnxruntime.py", ["ARTIFACT", "nothing.avi", "1,2,3,nan"], "box 1,2,3,nan is not LEFT,TOP"),
        (
            "track_onnxruntime.py",
            ["ARTIFACT", "x", "1,2,3,4", "--file", "onnx-int3"],
            "no model 'onnx-int3'; it has onnx",
        ),
        ("track_onnxruntime.py", ["nowhere", "nothing.avi", "1,2,3,4"], "nowhere/manifest.json"),
        (
            "classify_onnxruntime.py",
            ["ARTIFACT/onnx-fp32.onnx", "x.png"],
            "does not say that it is an edgemim classifier",
        ),
        ("classify_onnxruntime.py", ["nothing.onnx", "x.png"], "nothing.onnx"),
        ("classify_openvino.py", ["ARTIFACT", "x.png"], "is for tracking, not a classifier"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, program: str, words: list[str], message: str) -> None:
    pytest.importorskip(program.removesuffix(".py").split("_")[1])
    artifact = tiny_tracker(tmp_path / "artifact").folder
    command = [
        sys.executable,
        "-I",
        str(PROGRAMS / program),
        *(word.replace("ARTIFACT", str(artifact)) for word in words),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stderr.splitlines() if line.startswith(program.removesuffix(".py"))]
    assert done.returncode == 1 and len(lines) == 1 and message in lines[0] and "Traceback" not in done.stderr


def test_a_file_that_was_changed_is_not_opened(tmp_path: Path) -> None:
    artifact = tiny_tracker(tmp_path / "artifact", "cached")
    path = artifact.file("onnx-fp32-template")
    path.write_bytes(path.read_bytes() + b"\0")
    video = write_video(tmp_path / "video.avi", moving_target(4)[0])
    command = [sys.executable, str(PROGRAMS / "track_onnxruntime.py"), str(artifact.folder), str(video), "68,78,24,24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and not done.stdout
    assert "onnx-fp32-template.onnx is not the file that was exported" in done.stderr


def test_the_tensorrt_program_says_what_is_missing(artifact: Artifact, tmp_path: Path) -> None:
    """Without TensorRT the package, with it (tensorrt-rtx builds here, and has the same interface) the GPU."""
    words = [str(tmp_path / "engine.plan"), str(artifact.folder), "x.png"]
    command = [sys.executable, str(PROGRAMS / "classify_tensorrt.py"), *words]
    if importlib.util.find_spec("tensorrt") is None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "install NVIDIA's `tensorrt`" in done.stderr and "Traceback" not in done.stderr
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx: pip install 'edgemim[tensorrt]'")
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python comes with PyTorch for CUDA")
    if cuda.cudaGetDeviceCount()[0] == cuda.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    (tmp_path / "tensorrt.py").write_text("from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1 and "no usable GPU: CUDA says" in done.stderr and "Traceback" not in done.stderr


def test_the_tensorrt_program_calls_what_there_is() -> None:
    """No GPU runs it here: at least each name that it calls on a TensorRT object or on CUDA exists."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx: pip install 'edgemim[tensorrt]'")
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python comes with PyTorch for CUDA")
    text = (PROGRAMS / "classify_tensorrt.py").read_text().replace("from cuda.bindings import", "")
    owners = {
        "tensorrt": trt,
        "self.runtime": trt.Runtime,
        "self.engine": trt.ICudaEngine,
        "self.context": trt.IExecutionContext,
        "cuda": cuda,
    }
    for owner, has in owners.items():
        called = set(re.findall(rf"(?<![\w.]){re.escape(owner)}\.(\w+)", text))
        assert called and all(hasattr(has, name) for name in called), (owner, called)


@pytest.mark.parametrize("program", sorted(path.name for path in PROGRAMS.glob("*.py")))
def test_programs_stand_alone(program: str) -> None:
    text = (PROGRAMS / program).read_text()
    assert "import edgemim" not in text
    assert "from edgemim" not in text
    assert program in (EXPORT / "README.md").read_text()
    if program != "classify_tensorrt.py":  # that one says first that its packages are missing
        assert "usage" in run(program, "--help")


def test_programs_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in PROGRAMS.glob("*.py")}
    assert lengths["classify_onnxruntime.py"] <= 80 and max(lengths.values()) <= 140


def test_readme_begins_with_the_place_of_the_library_code() -> None:
    first = (EXPORT / "README.md").read_text().splitlines()[0]
    assert "edgemim/export" in first
    assert "edgemim/edge" in first
