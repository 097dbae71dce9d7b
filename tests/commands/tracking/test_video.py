"""`edgemim track VIDEO` from end to end on a small artifact that really follows, and what bad input leaves behind."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_artifact import tiny_artifact
from tiny_tracker import moving_target, tiny_tracker, write_video

from edgemim.cli import main
from edgemim.commands.track import TrackConfig, track
from edgemim.commands.tracking import video as video_module
from edgemim.commands.tracking.video import choose_key, given_box
from edgemim.edge.artifact import Artifact, describe_file
from edgemim.edge.tracking.boxes import Box, iou
from edgemim.edge.tracking.frames import open_frames
from edgemim.errors import Interrupted, UserError

FRAMES = 40
BOX = "68,78,24,24"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """artifact/, video.avi and boxes of its frames."""
    root = tmp_path_factory.mktemp("material")
    tiny_tracker(root / "artifact")
    write_video(root / "video.avi", moving_target(FRAMES)[0])
    return root


@pytest.fixture(autouse=True)
def _inside_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def run(material: Path, source: Path | str | None = None, **options: Any) -> dict[str, Any]:
    options = {"box": BOX, "threads": 1, **options}
    config = TrackConfig(source=str(source or material / "video.avi"), artifact=material / "artifact", **options)
    return track(config)


def read_boxes(path: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[key]) for key in ("left", "top", "width", "height")] for row in rows]), rows


def test_boxes_follow_and_everything_is_written(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(material, out=tmp_path / "new" / "tracked.mp4", csv=tmp_path / "b" / "boxes.csv")
    boxes, rows = read_boxes(tmp_path / "b" / "boxes.csv")
    truth = np.array(moving_target(FRAMES)[1])
    assert [int(row["frame"]) for row in rows] == list(range(1, FRAMES + 1))
    assert boxes[0].tolist() == [68, 78, 24, 24]
    assert iou(boxes, truth).min() > 0.5
    assert {row["lost"] for row in rows} == {"0"}
    with open_frames(tmp_path / "new" / "tracked.mp4", "opencv") as drawn:
        assert len(list(drawn)) == FRAMES and drawn.fps == 25
    (record,) = [json.loads(path.read_text()) for path in Path("runs").glob("track-*/run.json")]
    assert record["status"] == "done" and record["results"] == json.loads(json.dumps(result))
    assert (result["frames"], result["lost_frames"], result["key"]) == (FRAMES, 0, "onnx-fp32")
    stages = ["decode", "crop", "infer", "post", "draw", "write", "end_to_end", "frame"]
    assert list(result["latency"]) == stages
    for row in result["latency"].values():
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert result["frame_fps"] < result["end_to_end_fps"]
    assert 20 < result["memory_peak_mib"] < 4000
    said = capsys.readouterr().out
    for words in (
        "post-process",
        "p99 ms",
        "frames a second from the undecoded frame to the box",
        "peak memory",
        "next: ",
    ):
        assert words in said


def test_the_boxes_are_those_of_the_loop(material: Path) -> None:
    from edgemim.edge.tracking.tracker import Tracker

    run(material, out=Path("out"))
    tracker = Tracker.open(material / "artifact", threads=1)
    with open_frames(material / "video.avi") as frames:
        tracker.init(frames.first(), Box(68, 78, 24, 24))
        expected = [tracker.update(image).box for image in frames]
    assert np.allclose(read_boxes(Path("out/boxes.csv"))[0][1:], expected, atol=6e-4)
    assert len(list(Path("out/frames").iterdir())) == FRAMES
    assert (Path("out") / "run.json").is_file()


def test_without_drawing_there_is_no_drawing_stage(material: Path) -> None:
    result = run(material, frames=5)
    assert result["frames"] == 5 and "draw" not in result["latency"]
    assert len(read_boxes(next(Path("runs").glob("track-*/boxes.csv")))[1]) == 5


def test_a_folder_of_frames_with_its_own_box_file(material: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sequence"
    folder.mkdir()
    images, boxes = moving_target(8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "groundtruth.txt").write_text("\n".join("\t".join(f"{value:g}" for value in box) for box in boxes))
    result = run(material, folder, box=None, box_file=folder / "groundtruth.txt", out=tmp_path / "out")
    assert result["frames"] == 8
    assert iou(read_boxes(tmp_path / "out" / "boxes.csv")[0], np.array(boxes)).min() > 0.5


def test_the_cached_form_and_a_target_that_is_lost(material: Path, tmp_path: Path) -> None:
    images, _ = moving_target(12)
    gone = write_video(tmp_path / "gone.avi", [*images[:8], *[np.full_like(images[0], 120)] * 4])
    artifact = tiny_tracker(tmp_path / "cached", "cached").folder
    result = track(TrackConfig(source=str(gone), artifact=artifact, box=BOX, threads=1, out=tmp_path / "out"))
    assert result["lost_frames"] == 4
    assert [row["lost"] for row in read_boxes(tmp_path / "out" / "boxes.csv")[1]] == ["0"] * 8 + ["1"] * 4
    none = track(TrackConfig(source=str(gone), artifact=artifact, box=BOX, threads=1, lost_below=0, out=tmp_path / "o"))
    assert none["lost_frames"] == 0


def test_from_the_command_line(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "track",
        str(material / "video.avi"),
        "--artifact",
        str(material / "artifact"),
        "--box",
        BOX,
        "--frames",
        "4",
    ]
    assert main(words) == 0
    assert "4 frames of video" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": "68,78,24"}, r"--box, line 1: 3 numbers, expected 4"),
        ({"box": "a,b,c,d"}, "is not a row of numbers"),
        ({"box": ""}, "--box holds no box"),
        ({"box": "68,78,0,24"}, "box 68,78,0,24 has no area"),
        ({"box": "68,78,24,-4"}, "has no area"),
        ({"box": "nan,78,24,24"}, "is not four finite numbers"),
        ({"box": "168,78,24,24"}, r"lies outside the image of 160×120 pixels"),
        ({"box_file": Path("f")}, "--box and --box-file are both given"),
        ({"box": None}, r"selecting the object by mouse \(no --box or --box-file is given\) needs a display"),
        ({"show": True}, "--show needs a display, and this machine has none"),
        ({"box": None, "box_file": Path("nowhere.txt")}, r"cannot read box file nowhere\.txt: No such file"),
        ({"key": "onnx-int8"}, r"no model 'onnx-int8'"),
        ({"int8": True}, "has no INT8 model that runs here, it has onnx-fp32; make one: edgemim quantize"),
        ({"runtime": "openvin"}, r"did you mean 'openvino'\?"),
        ({"workers": 3}, "workers would have no effect with a video; leave out"),
        ({"pytracking_int": True, "resume": True}, "resume, pytracking-int would have no effect with a video"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing(material: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(material, **options)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no box"),
        ("bytes.txt", b"\xff\xfe\x00", "cannot read box file"),
        ("mask.txt", b"m1,2,3", "holds a mask"),
        ("six.txt", b"1,2,3,4,5,6", r"6 numbers, expected 4 \(x, y, width, height\) or 8"),
    ],
)
def test_box_files_at_fault(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        given_box(None, tmp_path / name)


def test_boxes_in_every_spelling(tmp_path: Path) -> None:
    assert given_box("1, 2.5,3 4", None) == Box(1, 2.5, 3, 4)
    (tmp_path / "polygon").write_text("10,10,30,12,28,40,8,38\n1,2,3,4\n")
    assert given_box(None, tmp_path / "polygon") == Box(8, 10, 22, 30)
    assert given_box(None, None) is None


def test_no_source_and_what_is_no_tracker(material: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a video file, a folder of frames or a camera's number"):
        track(TrackConfig(artifact=material / "artifact", box=BOX))
    classifier = tiny_artifact(tmp_path / "classifier").folder
    with pytest.raises(UserError, match="is for classification, not a tracker"):
        track(TrackConfig(source=str(material / "video.avi"), artifact=classifier, box=BOX))
    with pytest.raises(UserError, match=r"nowhere\.mp4 is no video file"):
        run(material, "nowhere.mp4")


def test_a_video_without_frames(material: Path, tmp_path: Path) -> None:
    path = tmp_path / "zero.avi"
    cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 120)).release()
    with pytest.raises(UserError, match=r"zero\.avi gives no frame"):
        run(material, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["zero.avi"]


@pytest.mark.parametrize("fault", ["cut", "size", "image"])
def test_what_was_done_before_a_fault_is_kept(material: Path, tmp_path: Path, fault: str) -> None:
    images, boxes = moving_target(20)
    source = tmp_path / "frames"
    if fault == "cut":
        source = write_video(tmp_path / "cut.avi", images)
        content = source.read_bytes()
        source.write_bytes(content[: len(content) * 6 // 10])
        message = r"cut short: (\d+) of 20 frames could be decoded"
    else:
        source.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image if number != 9 or fault == "image" else image[:60]).save(source / f"{number}.png")
        if fault == "image":
            (source / "9.png").write_bytes((source / "9.png").read_bytes()[:2000])
        message = "frame 10 has 160×60 pixels" if fault == "size" else r"9\.png: cannot be decoded"
    out = tmp_path / "out.avi"
    with pytest.raises(
        UserError, match=message + r".*; the boxes of \d+ frames before it are kept in .*boxes.csv"
    ) as caught:
        run(material, source, out=out, csv=tmp_path / "boxes.csv")
    found, _ = read_boxes(tmp_path / "boxes.csv")
    kept = 9 if fault != "cut" else len(found)
    assert len(found) == kept >= 5 and f"boxes of {kept} frames" in str(caught.value)
    assert iou(found, np.array(boxes[:kept])).min() > 0.5
    with open_frames(out, "opencv") as drawn:
        assert len(list(drawn)) == kept
    (record,) = [json.loads(path.read_text()) for path in Path("runs").glob("track-*/run.json")]
    assert record["status"] == "failed" and record["exit_code"] == 2
    assert record["results"]["frames"] == kept and record["results"]["latency"]["end_to_end"]["p50_ms"] > 0


def test_ctrl_c_ends_a_video_with_130_and_a_camera_well(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pressed(video_module.Tracker):
        calls = 0

        def update(self, image: np.ndarray) -> Any:
            Pressed.calls += 1
            if Pressed.calls % 10 == 0:  # the first warms up
                raise KeyboardInterrupt
            return super().update(image)

    monkeypatch.setattr(video_module, "Tracker", Pressed)
    with pytest.raises(Interrupted, match="interrupted; the boxes of 9 frames are kept"):
        run(material, csv=tmp_path / "boxes.csv")
    assert len(read_boxes(tmp_path / "boxes.csv")[1]) == 9
    opened = open_frames

    def as_camera(source: str, reader: Any) -> Any:
        frames = opened(source, reader)
        frames.live = True
        return frames

    monkeypatch.setattr(video_module, "open_frames", as_camera)
    assert run(material)["frames"] < FRAMES
    assert "includes the wait for its next frame" in capsys.readouterr().out


def test_which_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = tiny_tracker(tmp_path / "a")
    entry = describe_file(artifact.folder, "onnx-fp32.onnx", format="onnx", precision="int8")
    both = {"onnx-int8": entry, "openvino-int8": entry.model_copy(update={"format": "openvino"})}
    files = {**artifact.manifest.files, **both}
    full = Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files}))
    monkeypatch.setattr(video_module.importlib.util, "find_spec", lambda name: object())
    assert choose_key(full, None, None, int8=False) == "onnx-fp32"
    assert choose_key(full, "onnx-int8", None, int8=False) == "onnx-int8"
    assert choose_key(full, None, None, int8=True) == "openvino-int8"
    assert choose_key(full, None, "onnxruntime", int8=True) == "onnx-int8"
    monkeypatch.setattr(video_module.importlib.util, "find_spec", lambda name: None)
    assert choose_key(full, None, None, int8=True) == "onnx-int8"
    with pytest.raises(UserError, match="--key and --int8 are both given"):
        choose_key(full, "onnx-int8", None, int8=True)


def test_the_window_shows_every_frame_and_q_ends(
    material: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[np.ndarray] = []
    closed = []

    def show(image: np.ndarray) -> bool:
        shown.append(image)
        return len(shown) < 6

    monkeypatch.setattr(video_module, "check_window", lambda purpose: None)
    monkeypatch.setattr(video_module, "select_box", lambda image: Box(68, 78, 24, 24))
    monkeypatch.setattr(video_module, "show_frame", show)
    monkeypatch.setattr(video_module, "close_window", lambda: closed.append(True))
    assert run(material, box=None, show=True)["frames"] == len(shown) == 6
    assert closed and (shown[5] != moving_target(6)[0][5]).any()
