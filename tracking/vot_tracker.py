"""Run an edgemim tracker inside the VOT toolkit, which is another process and another environment (vot_environment.sh).

trackers.ini:

    [edgemim]
    label = edgemim
    protocol = python
    command = vot_tracker:Tracker
    paths = PATH/TO/tracking
    arg_artifact = ARTIFACT
    arg_key = onnx-fp32

Nothing of the toolkit is imported: its protocol hands over file paths and plain tuples, and takes them back.
"""

from pathlib import Path
from typing import Any

import edgemim.edge.tracking.tracker as edge
from edgemim.edge.images import load_image
from edgemim.edge.tracking.boxes import Box


class Tracker:
    """Follows each of the objects that the toolkit names, on its own; regions are left, top, width, height in pixels."""

    multiobject = True

    def __init__(
        self, artifact: str | Path, key: str = "onnx-fp32", runtime: str | None = None, threads: str | int = 0
    ) -> None:
        self._open = lambda: edge.Tracker.open(artifact, key, runtime=runtime, threads=int(threads))
        self._objects: list[edge.Tracker] = []

    def init(
        self, frame: Any, new: list[Any], properties: dict[str, Any] | None = None
    ) -> list[tuple[Any, dict[str, float]]]:
        """Forget what was followed, take the new objects from this frame."""
        self._objects = []
        return self._add(frame, new)

    def update(
        self, frame: Any, new: list[Any] | None = None, properties: dict[str, Any] | None = None
    ) -> list[tuple[Any, dict[str, float]]]:
        """Region and score of each object in this frame, in the order in which they came; new ones are added."""
        image = load_image(_path(frame))
        found = [one.update(image) for one in self._objects]
        regions = [(tuple(map(float, one.box)), {"score": float(one.score)}) for one in found]
        return regions + self._add(frame, new or [])

    def _add(self, frame: Any, new: list[Any]) -> list[tuple[Any, dict[str, float]]]:
        image, regions = load_image(_path(frame)), []
        for given in new:
            region = given[0] if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict) else given
            box = _box(region)
            tracker = self._open()
            tracker.init(image, box)
            self._objects.append(tracker)
            regions.append((tuple(map(float, box)), {"score": 1.0}))
        return regions


def _path(frame: Any) -> str:
    """The file of a frame, which comes as a path or as paths by channel."""
    return str(frame["color"] if isinstance(frame, dict) else frame)


def _box(region: Any) -> Box:
    """A rectangle as it is; of a polygon's points the axis-aligned box."""
    if len(region) == 4 and not isinstance(region[0], tuple | list):
        return Box(*map(float, region))
    columns, rows = zip(*region, strict=True)
    left, top = min(columns), min(rows)
    return Box(left, top, max(columns) - left, max(rows) - top)
