"""Frames of a video file, a folder, a camera or a stream, one after another: RGB, of one size, faults in a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np

from edgemim.edge.images import load_image
from edgemim.edge.tracking.sequences import list_frames
from edgemim.errors import MissingLibrary, UserError

Reader = Literal["auto", "pyav", "opencv"]

# Headers of some containers estimate the number of frames from duration and rate.
_SHORTFALL_FRAMES, _SHORTFALL_SHARE = 2, 0.05
_IMAGE_FOLDERS = ("img", "color")
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
# By the angle that a video's display matrix states, degrees counter-clockwise.
_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class FrameError(UserError):
    """A frame that cannot be had, or cannot follow those before it; the message names the source and the frame."""


class Frames:
    """A source of frames. Iterate over it, or call `read`; use it as a context manager.

    `fps` is the source's own rate (0 if unknown), `expected` the number of frames that it promises (None if unknown),
    `live` whether frames are lost when they are not read in time.
    """

    def __init__(self, name: str, *, fps: float = 0.0, expected: int | None = None, live: bool = False) -> None:
        self.name = name
        self.fps = fps if 0 < fps < 1000 else 0.0
        self.expected = expected
        self.live = live
        self.count = 0
        self._size: tuple[int, ...] = ()

    def read(self) -> np.ndarray | None:
        """The next frame, uint8 [h, w, 3] RGB, or None at the end.

        Raises FrameError if there is no frame at all, if one cannot be decoded or has another size than the first, or
        if there are clearly fewer than the source promises.
        """
        image = self._next()
        if image is None:
            self._check_end()
            return None
        self._size = self._size or image.shape
        if image.shape != self._size:
            raise FrameError(
                f"{self.name}: frame {self.count + 1} has {_size(image.shape)} pixels, those before it "
                f"{_size(self._size)}; bring all to one size first, for a box counts pixels of one"
            )
        self.count += 1
        return image

    def first(self) -> np.ndarray:
        """The first frame, to be called before any other is read. Raises FrameError if there is none."""
        image = self.read()
        assert image is not None, "read raises where there is no frame at all"
        return image

    def __iter__(self) -> Iterator[np.ndarray]:
        while (image := self.read()) is not None:
            yield image

    def close(self) -> None:
        """Give file or camera free."""

    def _next(self) -> np.ndarray | None:
        raise NotImplementedError

    def _check_end(self) -> None:
        if self.count == 0:
            raise FrameError(f"{self.name} gives no frame{'; is another program using it?' if self.live else ''}")
        missing = (self.expected or 0) - self.count
        if missing > max(_SHORTFALL_FRAMES, _SHORTFALL_SHARE * (self.expected or 0)):
            raise FrameError(
                f"{self.name} is damaged or cut short: {self.count} of {self.expected} frames could be decoded"
            )

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def open_frames(source: str | Path, reader: Reader = "auto") -> Frames:
    """Open a video file, a folder of images (or one with img/ or color/), a camera by number, or a stream by address.

    Videos are read by PyAV where it is installed, else by OpenCV. Raises FrameError if there is nothing to read,
    MissingLibrary if PyAV is asked for and absent.
    """
    text, path = str(source), Path(source)
    if path.is_dir():
        return FolderFrames(path)
    if path.is_file():
        return _open_file(path, reader)
    if text.isascii() and text.isdecimal():
        return OpenCvFrames(int(text), f"camera {text}", live=True)
    if "://" in text:
        return OpenCvFrames(text, text, live=True)
    raise FrameError(f"{text} is no video file, folder of images, camera number or stream address")


def _open_file(path: Path, reader: Reader) -> Frames:
    if path.stat().st_size == 0:
        raise FrameError(f"video {path} is empty (0 bytes)")
    if reader != "opencv":
        try:
            return PyAvFrames(path)
        except ImportError as error:
            if reader == "pyav":
                raise MissingLibrary(f"PyAV does not work here ({error}): pip install 'edgemim[video]'") from error
    return OpenCvFrames(str(path), f"video {path}", live=False)


class FolderFrames(Frames):
    """Images of a folder in natural order."""

    def __init__(self, folder: Path) -> None:
        for place in (folder, *(folder / name for name in _IMAGE_FOLDERS)):
            if paths := list_frames(place):
                break
        else:
            raise FrameError(f"folder {folder} holds no image, nor does img/ or color/ in it")
        super().__init__(f"folder {folder}", expected=len(paths))
        self._paths = iter(paths)

    def _next(self) -> np.ndarray | None:
        path = next(self._paths, None)
        return None if path is None else load_image(path)


class OpenCvFrames(Frames):
    """A video file, a camera (by number) or a stream, by OpenCV.

    OpenCV conceals most faults: a damaged frame may be left out, and frames of another size are scaled to the first's.
    """

    def __init__(self, target: str | int, name: str, *, live: bool) -> None:
        # OpenCV and the FFmpeg inside it write to standard error by themselves; what matters is said in a sentence.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._capture = cv2.VideoCapture(target)
        if not self._capture.isOpened():
            state = "cannot be opened" if live else "cannot be read as a video: it is damaged, or of an unknown kind"
            raise FrameError(f"{name} {state}")
        if live:  # the newest frame counts, not the oldest waiting one
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        expected = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        super().__init__(
            name,
            fps=self._capture.get(cv2.CAP_PROP_FPS),
            expected=int(expected) if not live and 0 < expected < 1e9 else None,
            live=live,
        )

    def _next(self) -> np.ndarray | None:
        found, image = self._capture.read()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if found else None

    def close(self) -> None:
        """Give file or camera free."""
        self._capture.release()


class PyAvFrames(Frames):
    """A video file by PyAV, which tells faults and changes of size apart. Raises ImportError without it."""

    def __init__(self, path: Path) -> None:
        import av

        self._fault = av.FFmpegError
        name = f"video {path}"
        try:
            self._container = av.open(str(path))
        except av.FFmpegError as error:
            reason = error.strerror or type(error).__name__
            raise FrameError(f"{name} cannot be read as a video: {reason}") from error
        if not self._container.streams.video:
            self._container.close()
            raise FrameError(f"{name} holds no frame: there is no video in it")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        super().__init__(name, fps=float(stream.average_rate or 0), expected=stream.frames or None)
        self._decoded = self._container.decode(stream)

    def _next(self) -> np.ndarray | None:
        try:
            frame = next(self._decoded, None)
        except self._fault as error:
            reason = error.strerror or type(error).__name__
            raise FrameError(f"{self.name}: frame {self.count + 1} cannot be decoded: {reason}") from error
        return None if frame is None else _to_rgb(frame)

    def close(self) -> None:
        """Give the file free."""
        self._container.close()


def _to_rgb(frame: Any) -> np.ndarray:
    """A decoded PyAV frame -> uint8 [h, w, 3], turned as a phone that was held upright asks for."""
    even = frame.width % 2 == 0 and frame.height % 2 == 0
    if frame.format.name == "yuv420p" and even and frame.color_range != _FULL_RANGE:
        # The most common kind; PyAV's own conversion waits for threads and takes three times as long.
        image = cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)
    else:
        image = frame.to_ndarray(format="rgb24")
    turn = _TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else cv2.rotate(image, turn)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"
