"""Run an edgemim tracker inside a checkout of PyTracking (visionml/pytracking), without a change to its files.

    python tracking/pytracking_plugin.py CHECKOUT --artifact ARTIFACT [--name edgemim] [--param default] [--key onnx-fp32]

writes two tiny modules into the checkout, `pytracking/tracker/NAME` and `pytracking/parameter/NAME/PARAM.py`, which import
this file. Then, in the checkout: `python run_tracker.py edgemim default --dataset_name lasot`, `run_video.py`,
`run_webcam.py`. Nothing of PyTracking (GPL-3.0) is imported or subclassed: its interface is met by shape. PyPI's
`pytracking` is another project.
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgemim.edge.tracking.tracker import Tracker

_TRACKER = '''"""Written by edgemim's pytracking_plugin.py."""
import sys

sys.path.insert(0, {folder!r})
from pytracking_plugin import PytrackingTracker


def get_tracker_class():
    return PytrackingTracker
'''
_PARAMETERS = '''"""Written by edgemim's pytracking_plugin.py."""
import sys

sys.path.insert(0, {folder!r})
import pytracking_plugin


def parameters():
    return pytracking_plugin.parameters({artifact!r}, key={key!r}, runtime={runtime!r}, threads={threads!r})
'''


def parameters(
    artifact: str, *, key: str = "onnx-fp32", runtime: str | None = None, threads: int = 0
) -> SimpleNamespace:
    """What PyTracking's runner hands to the tracker, with the two fields that the runner itself reads."""
    return SimpleNamespace(
        artifact=artifact,
        key=key,
        runtime=runtime,
        threads=threads,
        debug=0,
        visualization=False,
        tracker_name="edgemim",
    )


class PytrackingTracker:
    """`initialize(image, info)` and `track(image, info)`, as PyTracking's runner calls them; images are uint8 RGB."""

    predicts_segmentation_mask = False
    visdom: Any = None

    def __init__(self, params: Any) -> None:
        self.params = params
        self._tracker = Tracker.open(params.artifact, params.key, runtime=params.runtime, threads=params.threads)

    def initialize(self, image: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
        """Take the object of `info["init_bbox"]`, left, top, width, height in pixels."""
        self._tracker.init(image, np.asarray(info["init_bbox"], np.float64))
        return {}

    def track(self, image: np.ndarray, info: dict[str, Any] | None = None) -> dict[str, Any]:
        """The box in the next image, as floats, and how sure the network is that the object is there."""
        found = self._tracker.update(image)
        return {"target_bbox": list(map(float, found.box)), "object_presence_score": float(found.score)}

    def visdom_draw_tracking(self, image: np.ndarray, box: Any, segmentation: Any = None) -> None:
        """Show a frame in Visdom, where the runner has opened one."""
        if self.visdom is not None:
            boxes = box if isinstance(box, tuple) else (box,)
            self.visdom.register((image, *boxes), "Tracking", 1, "Tracking")


def install(
    checkout: Path, artifact: Path, *, name: str, param: str, key: str, runtime: str | None, threads: int
) -> list[Path]:
    """Write the modules into a checkout; returns them. Raises SystemExit with a sentence if it is none."""
    package = checkout / "pytracking"
    if not (package / "evaluation").is_dir():
        sys.exit(f"{checkout} is no checkout of visionml/pytracking (it has no pytracking/evaluation folder)")
    if not (artifact / "manifest.json").is_file():
        sys.exit(f"{artifact} has no manifest.json; give the folder that `edgemim export` wrote")
    for word in (name, param):
        if not word.isidentifier():
            sys.exit(f"'{word}' cannot be a module's name; use letters, digits and _")
    facts = {"folder": str(Path(__file__).resolve().parent), "artifact": str(artifact.resolve()), "key": key}
    facts |= {"runtime": runtime, "threads": threads}
    files = {
        package / "tracker" / name / "__init__.py": _TRACKER.format(**facts),
        package / "parameter" / name / "__init__.py": "",
        package / "parameter" / name / f"{param}.py": _PARAMETERS.format(**facts),
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--name", default="edgemim")
    parser.add_argument("--param", default="default")
    parser.add_argument("--key", default="onnx-fp32", help="which model of the artifact")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--threads", type=int, default=0, help="0: all usable CPUs")
    given = vars(parser.parse_args())
    for path in install(given.pop("checkout"), given.pop("artifact"), **given):
        print(path)
