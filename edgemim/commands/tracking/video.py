"""`edgemim track VIDEO`: boxes, a drawn video and the time of every stage, for a file, a folder of frames or a camera."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgemim.commands.tracking.outputs import Outputs
from edgemim.edge.artifact import Artifact
from edgemim.edge.machine import peak_memory_mib
from edgemim.edge.runtime import Session
from edgemim.edge.tracking.boxes import Box, parse_boxes
from edgemim.edge.tracking.draw import draw_box
from edgemim.edge.tracking.frames import Frames, open_frames
from edgemim.edge.tracking.latency import StageTimes, Stopwatch
from edgemim.edge.tracking.tracker import Tracked, Tracker, checked_box
from edgemim.edge.tracking.window import check_window, close_window, select_box, show_frame
from edgemim.errors import Interrupted, UserError
from edgemim.run import RunRecord, find_run

if TYPE_CHECKING:
    from edgemim.commands.track import TrackConfig


def track_video(config: TrackConfig) -> dict[str, Any]:
    """Track one object through a source of frames; returns what stands in run.json under 'results'.

    Raises UserError on a source, box or artifact at fault, and where a frame breaks off the run; Interrupted on
    Ctrl-C. Boxes, video and figures of the frames before are kept.
    """
    if config.source is None:
        raise UserError("give a video file, a folder of frames or a camera's number: edgemim track VIDEO --box x,y,w,h")
    box = given_box(config.box, config.box_file)
    if config.show or box is None:
        check_window("--show" if config.show else "selecting the object by mouse (no --box or --box-file is given)")
    artifact = Artifact.open(find_run(config.artifact, "export"))
    key = choose_key(artifact, config.key, config.runtime, int8=config.int8)
    tracker = Tracker.open(artifact, key, runtime=config.runtime, threads=config.threads, lost_below=config.lost_below)
    tracker.warm_up()
    with open_frames(config.source, config.reader) as frames:
        first = frames.first()
        box = checked_box(select_box(first) if box is None else box, first.shape[1], first.shape[0])
        out = Outputs(config)  # made only now: a box that does not fit leaves nothing behind
        with RunRecord("track", out.folder, config) as record:
            session: Session = tracker.session
            record.results.update(
                source=frames.name,
                live=frames.live,
                model=artifact.manifest.name,
                key=key,
                runtime=session.runtime,
                threads=session.threads,
            )
            run = _Run(tracker, frames, out, config)
            try:
                run.go(first, box)
            except KeyboardInterrupt as error:
                if not frames.live:  # a camera's picture has no other end
                    raise Interrupted(f"interrupted; the boxes of {run.count} frames are kept in {out.csv}") from error
            except UserError as error:
                raise _with_what_is_kept(error, run.count, out) from error
            finally:
                out.close()
                record.results.update(run.results())
    show_results(record.results)
    print(f"boxes in {out.csv}{f', drawn frames in {out.drawn}' if out.drawn else ''}; record in {out.folder}")
    print(f"next: edgemim track --dataset folder --data DIR --artifact {artifact.folder}")
    return record.results


def given_box(text: str | None, file: Path | None) -> Box | None:
    """The box of --box or of the first line of --box-file, None if neither is given. Raises UserError."""
    if text is not None and file is not None:
        raise UserError("--box and --box-file are both given; leave one out")
    if text is not None:
        content, where = text.strip(), "--box"
    elif file is not None:
        try:
            content, where = "".join(file.read_text().strip().splitlines()[:1]), str(file)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot read box file {file}: {reason}; its first line is left,top,width,height"
            ) from error
    else:
        return None
    if not content:
        raise UserError(f"{where} holds no box; write left,top,width,height in pixels")
    return Box.of(parse_boxes(content, where, polygons=file is not None)[0])


def choose_key(artifact: Artifact, key: str | None, runtime: str | None, *, int8: bool) -> str:
    """Which model file runs. Raises UserError if an INT8 one is asked for and there is none."""
    if key is not None and int8:
        raise UserError("--key and --int8 are both given; leave one out")
    if not int8:
        return key or (
            "onnx-fp32" if "onnx-fp32" in artifact.manifest.files else next(iter(artifact.manifest.files), "")
        )
    usable = ["onnx-int8"] if runtime in (None, "onnxruntime", "openvino") else []
    if runtime == "openvino" or (runtime is None and importlib.util.find_spec("openvino") is not None):
        usable.insert(0, "openvino-int8")
    for candidate in usable:
        if candidate in artifact.manifest.files:
            return candidate
    raise UserError(
        f"{artifact.folder} has no INT8 model that runs here, it has {', '.join(artifact.manifest.files)}; "
        f"make one: edgemim quantize {artifact.folder}"
    )


class _Run:
    """One pass over the frames."""

    def __init__(self, tracker: Tracker, frames: Frames, out: Outputs, config: TrackConfig) -> None:
        self._tracker, self._frames, self._out = tracker, frames, out
        self._show, self._limit = config.show, config.frames
        self._draws = config.show or out.drawn is not None
        self._times = StageTimes()
        self._lost = 0
        self.count = 0

    def go(self, first: np.ndarray, box: Box) -> None:
        """Track from the first frame, already read, to the last. Raises UserError."""
        try:
            self._tracker.init(first, box)
            self._out.write_box(1, box, 1.0, False)
            self.count = 1
            if self._draws and not self._put(draw_box(first, box, "start")):
                return
            while self.count != self._limit and self._step():
                pass
        finally:
            if self._show:
                close_window()

    def _step(self) -> bool:
        """One more frame; whether to go on."""
        watch = Stopwatch()
        image = self._frames.read()
        if image is None:
            return False
        decode_ms = watch.lap_ms()
        tracked = self._tracker.update(image)
        self.count += 1
        self._lost += tracked.lost
        self._out.write_box(self.count, tracked.box, tracked.score, tracked.lost)
        watch.lap_ms()
        if not self._draws:
            self._times.add(decode_ms, tracked)
            return True
        drawn = draw_box(image, tracked.box, _caption(tracked), lost=tracked.lost, speed=self._speed())
        draw_ms = watch.lap_ms()
        goes_on = self._put(drawn)
        self._times.add(decode_ms, tracked, draw=draw_ms, write=watch.lap_ms())
        return goes_on

    def _put(self, image: np.ndarray) -> bool:
        if self._out.drawn is not None:
            self._out.write_frame(image, self._frames.fps)
        return show_frame(image) if self._show else True

    def _speed(self) -> str:
        fps = self._times.recent_fps()
        return f"{fps:.0f} fps" if fps else ""

    def results(self) -> dict[str, Any]:
        """Figures of the frames so far."""
        latency = self._times.summary()
        fps = {f"{name}_fps": 1e3 / latency[name]["mean_ms"] for name in ("end_to_end", "frame") if latency}
        return {
            "frames": self.count,
            "lost_frames": self._lost,
            "latency": latency,
            **fps,
            "memory_peak_mib": round(peak_memory_mib(), 1),
        }


def show_results(results: dict[str, Any]) -> None:
    """Print the latency of every stage, frames a second and memory."""
    print(
        f"{results['frames']} frames of {results['source']} by {results['model']} {results['key']} on "
        f"{results['runtime']}, {results['threads']} threads; lost in {results['lost_frames']}"
    )
    if results["latency"]:
        table = Table()
        table.add_column("stage")
        for column in ("p50 ms", "p90 ms", "p99 ms", "mean ms"):
            table.add_column(column, justify="right")
        for stage, row in results["latency"].items():
            values = (row[name] for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms"))
            table.add_row(_STAGES[stage], *(f"{value:.2f}" for value in values))
        Console().print(table)
        print(
            f"{results['end_to_end_fps']:.1f} frames a second from the undecoded frame to the box "
            f"({results['frame_fps']:.1f} with all that was drawn and written)"
        )
        if results["live"]:
            print("(of a camera, decoding includes the wait for its next frame)")
    print(f"peak memory {results['memory_peak_mib']:.0f} MiB")


_STAGES = {
    "decode": "decode",
    "crop": "crop",
    "infer": "infer",
    "post": "post-process",
    "draw": "draw",
    "write": "write, show",
    "end_to_end": "decode to box",
    "frame": "all",
}


def _caption(tracked: Tracked) -> str:
    return f"{'lost ' if tracked.lost else ''}{tracked.score:.2f}"


def _with_what_is_kept(error: UserError, count: int, out: Outputs) -> UserError:
    """The same fault, with what is kept; nothing is said where nothing was done."""
    if not count:
        return error
    drawn = f" and {out.drawn}" if out.drawn else ""
    return UserError(f"{error}; the boxes of {count} frame{'s' * (count > 1)} before it are kept in {out.csv}{drawn}")
