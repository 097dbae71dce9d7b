"""`edgemim track`: follow an object in a video or a camera's picture, run a dataset, or score results; torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro

from edgemim.config import Config
from edgemim.errors import UserError

# What each of the three jobs alone has a use for; the rest serves more than one.
_OF_VIDEO = ("source", "box", "box_file", "csv", "show", "reader", "frames", "lost_below")
_OF_DATASET = ("data", "workers", "resume", "pytracking_int", "baseline", "filmstrip")
_OF_SCORE = ("annotations",)
_OF_BOTH = ("split", "sequences", "protocol", "skip_missing", "exclude_invalid_frames")


class TrackConfig(Config):
    """Follow one object through a video, a folder of frames or a camera's picture, from a box in the first frame.

    Example: edgemim track video.mp4 --artifact runs/export-... --box 163,53,45,174 --out tracked.mp4

    With --dataset the sequences of a dataset are tracked and scored; with --score results that are there already.
    """

    source: Annotated[str | None, tyro.conf.Positional] = None
    """Video file, folder of frames, number of a camera (0, 1, ...) or address of a stream."""
    artifact: Path | None = None
    """Folder that `edgemim export` wrote of a tracking run; default the newest."""
    key: str | None = None
    """Which model of the artifact: onnx-fp32 (default), onnx-int8, openvino-int8, ..."""
    int8: bool = False
    """Take the artifact's INT8 model: OpenVINO's where that is installed and there is one, else ONNX Runtime's."""
    runtime: str | None = None
    """onnxruntime or openvino; default the one that the file is made for."""
    threads: int = pydantic.Field(0, ge=0)
    """CPU threads of the network; 0 is all usable CPUs."""
    box: str | None = None
    """Where the object is in the first frame: left,top,width,height in pixels. Without it and --box-file: by mouse."""
    box_file: Path | None = None
    """A file whose first line holds that box, or the 8 corner values of a polygon."""
    lost_below: float | None = pydantic.Field(None, ge=0, le=1)
    """Scores below this are shown as lost; default the artifact's."""
    out: Path | None = None
    """Video with the boxes drawn in (.mp4, .avi, .mkv, .mov), or a folder for such frames, boxes.csv and run.json.
    Of --dataset and --score: the folder for results. Default: runs/track-TIME, without drawn frames."""
    csv: Path | None = None
    """Where the boxes go; default boxes.csv in the folder of this run."""
    show: bool = False
    """Show the frames in a window; q or Escape ends."""
    reader: Literal["auto", "pyav", "opencv"] = "auto"
    """Who decodes a video file; auto: PyAV where it is installed, else OpenCV."""
    frames: int = pydantic.Field(0, ge=0)
    """Stop after so many frames; 0 is all."""
    dataset: Literal["lasot", "otb", "got10k", "uav123", "vot", "folder"] | None = None
    """Layout of the dataset to run on, or that --score's results belong to."""
    data: Path | None = None
    """Folder of the dataset."""
    split: str = ""
    """Part of the dataset, as its layout names them; default all that is there."""
    sequences: tuple[str, ...] = ()
    """Only these sequences."""
    score: tuple[Path, ...] = ()
    """Folders of results (of any tracker) to score instead of running one; needs --dataset."""
    annotations: Path | None = None
    """Boxes of the dataset that --score compares with: its folder, or its toolkit's annotations without frames."""
    protocol: Literal["lasot", "pytracking", "got10k", "pysot", "ostrack", "clean"] | None = None
    """Whose conventions the figures follow; default those of the dataset's own toolkit."""
    workers: int = pydantic.Field(1, ge=1)
    """Sequences at once, each in a process of its own."""
    skip_missing: bool = False
    """Score the sequences that are there and whole, for all trackers alike, in place of refusing an unfinished result."""
    exclude_invalid_frames: bool = False
    """Take shares of the valid frames alone (PyTracking's option; not comparable with published figures)."""
    baseline: bool = False
    """Score the first box, repeated, beside the tracker."""
    filmstrip: int = pydantic.Field(8, ge=0)
    """Frames in the picture of each sequence; 0 makes none."""
    resume: bool = False
    """Go on in the folder given by --out; finished sequences are kept."""
    pytracking_int: bool = False
    """Cut boxes to whole pixels, as PyTracking's and OSTrack's writers do."""
    overwrite: bool = False
    """Empty the folder, or replace the files, given by --out and --csv first."""


def track(config: TrackConfig) -> Any:
    """Track or score; returns what stands in run.json under 'results'. Raises EdgemimError, what was done is kept."""
    if config.score:
        _refuse_idle(config, "--score", (*_OF_VIDEO, *_OF_DATASET, "artifact", "key", "int8", "runtime", "threads"))
        if config.dataset is None:
            raise UserError("--score needs --dataset: the layout of the annotations that the results belong to")
        from edgemim.commands.tracking.score import score

        return score(config)
    if config.dataset is not None:
        _refuse_idle(config, "--dataset", (*_OF_VIDEO[1:], *_OF_SCORE))
        from edgemim.commands.tracking.evaluate import evaluate

        return evaluate(config)
    _refuse_idle(config, "a video", (*_OF_DATASET, *_OF_SCORE, *_OF_BOTH))
    from edgemim.commands.tracking.video import track_video

    return track_video(config)


def _refuse_idle(config: TrackConfig, job: str, names: tuple[str, ...]) -> None:
    """An option that would be ignored in silence is a mistake. Raises UserError."""
    fields = type(config).model_fields
    idle = [name.replace("_", "-") for name in names if getattr(config, name) != fields[name].default]
    if idle:
        raise UserError(f"{', '.join(idle)} would have no effect with {job}; leave out")
