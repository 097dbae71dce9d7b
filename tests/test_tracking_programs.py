"""tracking/demo.py as a user starts it: boxes on standard output, times on standard error, faults in a sentence."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_tracker import moving_target, tiny_tracker, write_video

from edgemim.edge.tracking.boxes import Box, iou
from edgemim.edge.tracking.frames import open_frames
from edgemim.edge.tracking.tracker import Tracker

PROGRAM = Path(__file__).parent.parent / "tracking" / "demo.py"
BOX = "68,78,24,24"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    for form in ("joint", "cached"):
        tiny_tracker(root / form, form)
    write_video(root / "video.avi", moving_target(15)[0])
    return root


def demo(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, words)]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, env=environment)


def read(text: str) -> tuple[np.ndarray, list[str]]:
    rows = [line.split("\t") for line in text.splitlines()]
    return np.array([[float(value) for value in row[1:5]] for row in rows]), [row[6] for row in rows]


@pytest.mark.parametrize("form", ["joint", "cached"])
def test_boxes_are_the_library_s_and_follow(material: Path, form: str, tmp_path: Path) -> None:
    done = demo(material / form, material / "video.avi", "--box", BOX, "--threads", "1", "--out", tmp_path / "out.avi")
    assert done.returncode == 0, done.stderr
    boxes, states = read(done.stdout)
    tracker = Tracker.open(material / form, threads=1)
    with open_frames(material / "video.avi") as frames:
        tracker.init(frames.first(), Box(68, 78, 24, 24))
        expected = np.array([tracker.update(image).box for image in frames])
    assert np.allclose(boxes, expected, atol=6e-3)
    assert iou(boxes, np.array(moving_target(15)[1][1:])).min() > 0.5
    assert states == ["ok"] * 14
    for stage in ("decode", "crop", "infer", "post", "end_to_end", "peak memory"):
        assert stage in done.stderr
    with open_frames(tmp_path / "out.avi", "opencv") as drawn:
        assert len(list(drawn)) == 14


def test_a_runtime_can_be_chosen(material: Path) -> None:
    pytest.importorskip("openvino")
    done = demo(material / "joint", material / "video.avi", "--box", BOX, "--runtime", "openvino")
    assert done.returncode == 0, done.stderr
    assert len(read(done.stdout)[0]) == 14


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["joint", "nowhere.mp4", "--box", BOX], "nowhere.mp4 is no video file"),
        (["joint", "video.avi", "--box", "1,2,3"], "--box, line 1: 3 numbers, expected 4"),
        (["joint", "video.avi", "--box", "500,2,3,4"], "lies outside the image of 160×120 pixels"),
        (["joint", "video.avi"], "needs a display"),
        (["joint", "video.avi", "--box", BOX, "--key", "onnx-int8"], "no model 'onnx-int8'"),
        (["missing", "video.avi", "--box", BOX], "is not a folder"),
        (["joint", "zero.avi", "--box", BOX], "gives no frame"),
    ],
)
def test_faults_are_one_sentence(material: Path, words: list[str], message: str) -> None:
    cv2.VideoWriter(str(material / "zero.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 120)).release()
    done = demo(*words, cwd=material)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("peak memory")]
    assert len(lines) == 1 and lines[0].startswith("demo: ") and message in lines[0]


def test_a_video_cut_short_gives_the_boxes_before(material: Path) -> None:
    content = (material / "video.avi").read_bytes()
    (material / "cut.avi").write_bytes(content[: len(content) * 6 // 10])
    done = demo(material / "joint", material / "cut.avi", "--box", BOX)
    assert done.returncode == 2 and "cut short" in done.stderr
    assert len(read(done.stdout)[0]) >= 4


def test_the_demo_stands_on_the_edge_wing_alone() -> None:
    lines = [line.split() for line in PROGRAM.read_text().splitlines() if line.startswith(("import", "from"))]
    modules = {line[1] for line in lines if line[1].startswith("edgemim")}
    assert modules
    assert all(module.startswith("edgemim.edge.") or module == "edgemim.errors" for module in modules)
    assert "usage" in demo("--help").stdout
