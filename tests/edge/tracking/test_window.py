"""Without a display or an OpenCV with windows: a sentence before anything else; with them: what keys and mouse do."""

import cv2
import numpy as np
import pytest

from edgemim.edge.tracking import window
from edgemim.edge.tracking.boxes import Box
from edgemim.errors import MissingLibrary, UserError

IMAGE = np.zeros((20, 30, 3), np.uint8)


def test_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"^--show needs a display, and this machine has none"):
        window.check_window("--show")


def test_with_a_headless_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(window.cv2, "namedWindow", absent)
    with pytest.raises(MissingLibrary, match=r"--show needs an OpenCV with windows.*pip install opencv-python"):
        window.check_window("--show")


def test_the_mouse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window.cv2, "selectROI", lambda *_, **__: (3, 4, 10, 12))
    assert window.select_box(IMAGE) == Box(3, 4, 10, 12)
    monkeypatch.setattr(window.cv2, "selectROI", lambda *_, **__: (0, 0, 0, 0))
    with pytest.raises(UserError, match="no box was selected"):
        window.select_box(IMAGE)


@pytest.mark.parametrize(
    ("key", "visible", "goes_on"), [(-1, 1, True), (ord("q"), 1, False), (27, 1, False), (-1, 0, False)]
)
def test_keys_and_closing(monkeypatch: pytest.MonkeyPatch, key: int, visible: float, goes_on: bool) -> None:
    shown = []
    monkeypatch.setattr(window.cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(window.cv2, "waitKey", lambda _: key)
    monkeypatch.setattr(window.cv2, "getWindowProperty", lambda *_: visible)
    image = IMAGE.copy()
    image[..., 0] = 200
    assert window.show_frame(image) is goes_on
    assert shown[0][0, 0].tolist() == [0, 0, 200]  # OpenCV shows blue, green, red


def test_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(window.cv2, "destroyAllWindows", lambda: closed.append(True))
    window.close_window()
    assert closed
