"""Frames of every kind of source; what is empty, damaged, cut short or changes its size is a sentence."""

import builtins
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_tracker import moving_target, write_video

from edgemim.edge.images import ImageError
from edgemim.edge.tracking import frames as frames_module
from edgemim.edge.tracking.frames import FolderFrames, FrameError, Frames, OpenCvFrames, Reader, open_frames
from edgemim.errors import MissingLibrary

READERS: list[Reader] = ["opencv", "pyav"]


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    if request.param == "pyav":
        pytest.importorskip("av", reason="PyAV: pip install 'edgemim[video]'")
    return request.param


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return moving_target(20)[0]


def drain(source: Frames) -> list[np.ndarray]:
    with source:
        return list(source)


@pytest.mark.parametrize(("name", "codec"), [("v.avi", "MJPG"), ("v.mp4", "mp4v"), ("v.mkv", "mp4v")])
def test_a_video_gives_its_frames_in_rgb(
    tmp_path: Path, images: list[np.ndarray], reader: Reader, name: str, codec: str
) -> None:
    source = open_frames(write_video(tmp_path / name, images, codec, fps=12.5), reader)
    assert source.fps == 12.5 and not source.live
    found = drain(source)
    assert len(found) == source.count == len(images)
    for image, frame in zip(images, found, strict=True):
        assert frame.dtype == np.uint8 and frame.shape == image.shape
        # Blue and red swapped would differ by over 100 on the orange target.
        assert np.abs(frame.astype(int) - image).mean() < 8
    assert np.abs(found[0].astype(int) - images[-1]).max() > 100


def test_odd_sizes(tmp_path: Path, reader: Reader) -> None:
    given = moving_target(5, 161, 121)[0]
    video = tmp_path / "odd.mjpeg"
    pictures = [cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes() for image in given]
    video.write_bytes(b"".join(pictures))
    found = drain(open_frames(video, reader))
    assert [frame.shape for frame in found] == [(121, 161, 3)] * 5
    assert np.abs(found[4].astype(int) - given[4]).mean() < 8


def test_readers_agree_on_a_real_video(shared: Path) -> None:
    pytest.importorskip("av", reason="PyAV: pip install 'edgemim[video]'")
    path = shared / "tracking" / "videos" / "opencv_cup.mp4"
    with open_frames(path, "pyav") as first, open_frames(path, "opencv") as second:
        assert first.expected == second.expected == 217
        for _ in range(5):
            a, b = first.read(), second.read()
            assert a is not None and b is not None
            assert np.abs(a.astype(int) - b).max() <= 4


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_video_is_turned(tmp_path: Path, images: list[np.ndarray], reader: Reader, degrees: int) -> None:
    """The display matrix of an MP4's track header (ISO 14496-12, 8.3.2), which says how the camera was held."""
    path = write_video(tmp_path / "v.mp4", images[:3], "mp4v")
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 4 + 40
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = (cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    content[place : place + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    # The matrix turns clockwise.
    expected = np.rot90(images[0], -degrees // 90)
    found = open_frames(path, reader).first()
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 8


def test_a_folder_in_natural_order(tmp_path: Path, images: list[np.ndarray]) -> None:
    for number, image in enumerate(images, start=1):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "groundtruth.txt").write_text("1,1,2,2\n")
    found = drain(open_frames(str(tmp_path)))
    assert all(np.array_equal(a, b) for a, b in zip(found, images, strict=True))


def test_a_sequence_folder(tmp_path: Path, images: list[np.ndarray]) -> None:
    (tmp_path / "img").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "img" / "0001.jpg")
    assert len(drain(open_frames(tmp_path))) == 1


def test_a_broken_image_is_named_and_those_before_it_came(tmp_path: Path, images: list[np.ndarray]) -> None:
    for number in range(3):
        Image.fromarray(images[number]).save(tmp_path / f"{number}.jpg")
    whole = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(whole[: len(whole) // 2])
    source = open_frames(tmp_path)
    with pytest.raises(ImageError, match=r"2\.jpg: cannot be decoded"):
        drain(source)
    assert source.count == 2


def test_another_size_in_a_folder(tmp_path: Path, images: list[np.ndarray]) -> None:
    for number in range(3):
        Image.fromarray(images[number][: 100 + 20 * (number < 2)]).save(tmp_path / f"{number}.png")
    with pytest.raises(FrameError, match=r"frame 3 has 160×100 pixels, those before it 160×120; bring all to one size"):
        drain(open_frames(tmp_path))


def test_another_size_in_a_video(tmp_path: Path, images: list[np.ndarray], reader: Reader) -> None:
    path = tmp_path / "v.mjpeg"
    pictures = [image if number < 7 else cv2.resize(image, (320, 240)) for number, image in enumerate(images)]
    path.write_bytes(b"".join(cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures))
    source = open_frames(path, reader)
    if reader == "opencv":  # it scales to the first size by itself
        assert {frame.shape for frame in drain(source)} == {(120, 160, 3)}
        return
    with pytest.raises(FrameError, match="frame 8 has 320×240 pixels, those before it 160×120"):
        drain(source)
    assert source.count == 7


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("a.avi", lambda content: content[: len(content) * 6 // 10], r"cut short: \d+ of 20 frames could be decoded"),
        ("a.mp4", lambda content: content[: len(content) // 2], "cannot be read as a video"),
        ("a.mp4", lambda content: b"", r"is empty \(0 bytes\)"),
        ("a.mp4", lambda content: b"not a video at all", "cannot be read as a video"),
    ],
)
def test_damaged_files(
    tmp_path: Path, images: list[np.ndarray], reader: Reader, name: str, damage: object, message: str
) -> None:
    path = write_video(tmp_path / name, images, "MJPG" if name == "a.avi" else "mp4v")
    path.write_bytes(damage(path.read_bytes()))  # pyright: ignore[reportCallIssue]
    with pytest.raises(FrameError, match=message) as caught:
        drain(open_frames(path, reader))
    assert str(path) in str(caught.value)


def test_a_damaged_packet(tmp_path: Path, images: list[np.ndarray], reader: Reader) -> None:
    path = write_video(tmp_path / "a.mp4", images, "mp4v")
    content = bytearray(path.read_bytes())
    begin, end = len(content) * 4 // 10, len(content) // 2
    content[begin:end] = b"\xaa" * (end - begin)
    path.write_bytes(content)
    source = open_frames(path, reader)
    with pytest.raises(FrameError, match=r"frame \d+ cannot be decoded|cut short: \d+ of 20 frames"):
        drain(source)
    assert 0 < source.count < 20


@pytest.mark.parametrize("name", ["zero.avi", "zero.mp4"])
def test_a_video_without_frames(tmp_path: Path, reader: Reader, name: str) -> None:
    path = tmp_path / name
    cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (160, 120)).release()
    with pytest.raises(FrameError, match=r"gives no frame|holds no frame|cannot be read as a video"):
        drain(open_frames(path, reader))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=r"nowhere\.mp4 is no video file, folder of images, camera number or stream"):
        open_frames("nowhere.mp4")
    with pytest.raises(FrameError, match="holds no image, nor does img/"):
        open_frames(tmp_path)
    with pytest.raises(FrameError, match="camera 97 cannot be opened"):
        open_frames("97")


def test_a_camera_gives_the_newest_frame_and_no_end_is_expected(
    tmp_path: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no camera here: a file stands for it."""
    video = write_video(tmp_path / "camera.avi", images)
    opened = cv2.VideoCapture
    monkeypatch.setattr(frames_module.cv2, "VideoCapture", lambda target: opened(str(video) if target == 0 else target))
    source = open_frames("0")
    assert source.live and source.expected is None and source.name == "camera 0"
    assert len(drain(source)) == len(images)


def test_a_camera_that_gives_nothing() -> None:
    class Silent(Frames):
        def _next(self) -> None:
            return None

    with pytest.raises(FrameError, match="camera 0 gives no frame; is another program using it"):
        Silent("camera 0", live=True).read()


def test_without_pyav(tmp_path: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.avi", images)
    imported = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'")
        return imported(name, *rest, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(builtins, "__import__", without)
    assert isinstance(open_frames(path), OpenCvFrames)
    with pytest.raises(MissingLibrary, match=r"pip install 'edgemim\[video\]'"):
        open_frames(path, "pyav")
    assert isinstance(open_frames(path, "opencv"), OpenCvFrames)


def test_a_file_is_named_before_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_frames("0"), FolderFrames)
