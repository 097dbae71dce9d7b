"""A window for frames and for selecting the object by mouse, where there is a display and an OpenCV that has windows."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np

from edgemim.edge.tracking.boxes import Box
from edgemim.errors import MissingLibrary, UserError

_TITLE = "edgemim track"
_QUIT_KEYS = frozenset({ord("q"), 27})  # q and Escape


def check_window(purpose: str) -> None:
    """Raise UserError without a display, MissingLibrary with an OpenCV without windows; `purpose` begins the sentence."""
    # Asked first: without a display OpenCV's toolkit would abort the whole process.
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError(f"{purpose} needs a display, and this machine has none")
    try:
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        raise MissingLibrary(
            f"{purpose} needs an OpenCV with windows, the headless one has none: "
            "pip uninstall opencv-python-headless && pip install opencv-python"
        ) from error


def select_box(image: np.ndarray) -> Box:
    """Have the user drag a box over uint8 [h, w, 3] RGB; Enter takes it. Raises UserError if none was drawn."""
    chosen = cv2.selectROI(_TITLE, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), showCrosshair=False)
    box = Box(*map(float, chosen))
    if box.width <= 0 or box.height <= 0:
        raise UserError("no box was selected; drag one over the object and press Enter, or give --box x,y,w,h")
    return box


def show_frame(image: np.ndarray) -> bool:
    """Show uint8 [h, w, 3] RGB; returns False once the user has pressed q or Escape, or closed the window."""
    cv2.imshow(_TITLE, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    pressed = cv2.waitKey(1) & 0xFF
    return pressed not in _QUIT_KEYS and cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1


def close_window() -> None:
    """Take the window away."""
    cv2.destroyAllWindows()
