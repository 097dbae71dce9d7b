"""Trackers beside each other: accuracy on annotated sequences, and time and memory end to end on a video, in turns.

    python benchmarks/tracker_peers.py ARTIFACT[:KEY[@RUNTIME]] ... --weights WEIGHTS --sequences FOLDER \\
        --video VIDEO --box x,y,w,h

Peers, as far as their files lie in WEIGHTS: VitTrack (object_tracking_vittrack_2023sep.onnx) by OpenCV's own wrapper and in
this project's loop on both runtimes, NanoTrack V2 (nanotrackv2/nanotrack_{backbone,head}_sim.onnx) by OpenCV's wrapper;
and 'no motion', which answers the first box for ever. Every tracker runs in a process of its own; one call decodes a frame
of the video and finds the box in it. They take turns in blocks, so that what else the machine does hits all alike. After
the video's last frame a call begins anew with the first (template included).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from edgemim.config import Config
from edgemim.edge.artifact import Artifact, Manifest, create, describe_file
from edgemim.edge.images import Preprocessing, load_image
from edgemim.edge.isolated import CaseFailed, IsolatedCase, IsolatedResult, measure_isolated
from edgemim.edge.machine import describe, runtime_version, usable_cpus
from edgemim.edge.tracking.boxes import Box, parse_boxes
from edgemim.edge.tracking.frames import Frames, open_frames
from edgemim.edge.tracking.inference import TrackingInference
from edgemim.edge.tracking.layouts import open_sequences
from edgemim.edge.tracking.protocols import PROTOCOLS
from edgemim.edge.tracking.sequences import Sequence
from edgemim.edge.tracking.tracker import Tracker
from edgemim.errors import UserError

VITTRACK = "object_tracking_vittrack_2023sep.onnx"
NANOTRACK = ("nanotrackv2/nanotrack_backbone_sim.onnx", "nanotrackv2/nanotrack_head_sim.onnx")


class TrackerPeersConfig(Config):
    """Measure trackers beside each other."""

    artifacts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Artifacts of this project's trackers: FOLDER, FOLDER:KEY or FOLDER:KEY@RUNTIME."""
    weights: Path | None = None
    """Folder with the peers' files."""
    sequences: Path | None = None
    """Annotated sequences, in the layout 'folder'; without it accuracy is left out."""
    video: Path | None = None
    """Video for the times; without it they are left out."""
    box: str = ""
    """Where the object is in the video's first frame: left,top,width,height."""
    threads: int = 0
    """CPU threads of each tracker; 0 is all usable CPUs."""
    seconds: float = 6.0
    """Least time of each tracker, over all blocks."""
    blocks: int = 7
    """Blocks of each tracker."""
    out: Path | None = None
    """File for the JSON."""


class Follower(Protocol):
    """What the trackers have in common here: uint8 [h, w, 3] RGB in, four numbers out."""

    def init(self, image: np.ndarray, box: Box) -> object: ...

    def update(self, image: np.ndarray) -> Box: ...


class Peer(NamedTuple):
    """A tracker and how to open it; all of it is JSON."""

    name: str
    kind: str
    """loop, vit, nano or still."""
    files: tuple[str, ...] = ()
    key: str = ""
    runtime: str = ""


class Loop:
    """This project's tracker."""

    def __init__(self, folder: str, key: str, runtime: str, threads: int) -> None:
        self._tracker = Tracker.open(folder, key, runtime=runtime or None, threads=threads)
        self.init = self._tracker.init

    def update(self, image: np.ndarray) -> Box:
        """The box alone."""
        return self._tracker.update(image).box


class OpenCv:
    """One of OpenCV's trackers: BGR images, boxes of whole pixels."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def init(self, image: np.ndarray, box: Box) -> None:
        """A tracker for each target."""
        self._tracker = self._make()
        self._tracker.init(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [round(value) for value in box])

    def update(self, image: np.ndarray) -> Box:
        """Where it says that it is sure or not, the box is taken."""
        _, box = self._tracker.update(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return Box(*map(float, box))


class Still:
    """The first box for ever."""

    def init(self, image: np.ndarray, box: Box) -> None:
        """Keep the box."""
        self._box = box

    def update(self, image: np.ndarray) -> Box:
        """The same box."""
        return self._box


def vittrack_artifact(weights: Path, folder: Path) -> Artifact:
    """VitTrack's network, an OSTrack of another backbone, as an artifact: ImageNet's statistics, RGB, its own map names."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights / VITTRACK, folder / "model.onnx")
    names = ("output1", "output2", "output3")
    manifest = Manifest(
        name="vittrack",
        task="tracking",
        input_name="search",
        input_shape=(1, 3, 256, 256),
        inputs={"template": (1, 3, 128, 128), "search": (1, 3, 256, 256)},
        output_names=names,
        preprocessing=Preprocessing(image_size=256, crop_pct=1.0, interpolation="bilinear"),
        tracking=TrackingInference(maps=names, border="whole"),
        opset=12,
        files={"onnx-fp32": describe_file(folder, "model.onnx", format="onnx", precision="fp32")},
    )
    return create(folder, manifest)


def open_follower(peer: Peer, threads: int) -> Follower:
    """Open a tracker in this process. Raises EdgemimError."""
    cv2.setNumThreads(threads)
    if peer.kind == "loop":
        return Loop(peer.files[0], peer.key, peer.runtime, threads)
    if peer.kind == "still":
        return Still()
    if peer.kind == "vit":
        parameters = cv2.TrackerVit.Params()
        parameters.net = peer.files[0]
        return OpenCv(lambda: cv2.TrackerVit.create(parameters))
    parameters = cv2.TrackerNano.Params()
    parameters.backbone, parameters.neckhead = peer.files
    return OpenCv(lambda: cv2.TrackerNano.create(parameters))


def open_peer(peer: list[Any], video: str, box: str, threads: int) -> tuple[Callable[[], object], dict[str, Any]]:
    """In the child: the call to time is one frame of the video, decoding included."""
    follower = open_follower(Peer(*peer), threads)
    target = Box.of(parse_boxes(box, "--box")[0])
    playing: list[Frames] = []

    def step() -> None:
        image = playing[0].read() if playing else None
        if image is not None:
            follower.update(image)
            return
        playing[:] = [open_frames(video)]
        follower.init(playing[0].first(), target)

    return step, {}


def list_peers(config: TrackerPeersConfig, vittrack: Path) -> list[Peer]:
    """This project's artifacts, then the peers whose files are there. Raises UserError."""
    peers = [_of_ours(text) for text in config.artifacts]
    if config.weights is not None:
        if (config.weights / VITTRACK).is_file():
            folder = str(vittrack_artifact(config.weights, vittrack).folder)
            peers += [
                Peer(f"VitTrack, our loop, {runtime}", "loop", (folder,), "onnx-fp32", runtime)
                for runtime in ("onnxruntime", "openvino")
                if runtime_version(runtime)
            ]
            peers.append(Peer("VitTrack, cv2.TrackerVit", "vit", (str(config.weights / VITTRACK),)))
        files = tuple(str(config.weights / name) for name in NANOTRACK)
        if all(Path(name).is_file() for name in files):
            peers.append(Peer("NanoTrack V2, cv2.TrackerNano", "nano", files))
    return [*peers, Peer("no motion", "still")]


def _of_ours(text: str) -> Peer:
    text, _, runtime = text.partition("@")
    folder, _, key = text.rpartition(":") if ":" in text else (text, "", "onnx-fp32")
    artifact = Artifact.open(folder)
    runtime = runtime or ("openvino" if artifact.entry(key).format == "openvino" else "onnxruntime")
    return Peer(f"{artifact.manifest.name} {key}, {runtime}", "loop", (folder,), key, runtime)


def follow(follower: Follower, sequence: Sequence) -> np.ndarray:
    """One pass over a sequence: float64 [n, 4], the first row the starting box."""
    follower.init(load_image(sequence.frames[0]), sequence.init_box)
    found = [sequence.init_box, *(follower.update(load_image(path)) for path in sequence.frames[1:])]
    return np.array(found, np.float64)


def accuracy(peers: list[Peer], sequences: list[Sequence], threads: int) -> dict[str, dict[str, float]]:
    """{peer: {sequence: AUC in percent}} by PyTracking's conventions."""
    rows = {}
    for peer in peers:
        follower = open_follower(peer, threads)
        scores = {one.name: PROTOCOLS["pytracking"].score(follow(follower, one), one, "otb") for one in sequences}
        rows[peer.name] = {name: float(score.values["auc"]) for name, score in scores.items()}
    return rows


def speed(peers: list[Peer], config: TrackerPeersConfig, threads: int) -> dict[str, dict[str, Any]]:
    """{peer: latency of one frame, percentiles in ms, frames a second, peak memory in MiB}."""
    if config.video is None:
        return {}

    def opener(peer: Peer) -> Callable[[], IsolatedCase]:
        arguments = {"peer": list(peer), "video": str(config.video), "box": config.box, "threads": threads}
        return lambda: IsolatedCase("benchmarks.tracker_peers:open_peer", arguments, threads=threads)

    results = measure_isolated(
        {peer.name: opener(peer) for peer in peers}, seconds=config.seconds, runs=0, blocks=config.blocks
    )
    return {name: _row(result) for name, result in results.items()}


def _row(result: IsolatedResult | CaseFailed) -> dict[str, Any]:
    if isinstance(result, CaseFailed):
        return {"failed": str(result)}
    return {**result.timing.summary(), "memory_peak_mib": result.memory_peak_mib}


def show(peers: list[Peer], scores: dict[str, dict[str, float]], times: dict[str, dict[str, Any]]) -> None:
    """Print one line a tracker."""
    table = Table()
    table.add_column("tracker", overflow="fold")
    names = list(next(iter(scores.values()), {}))
    for column in (*(f"AUC {name}" for name in names), "p50 ms", "p90 ms", "p99 ms", "fps", "peak MiB", "others"):
        table.add_column(column, justify="right")
    for peer in peers:
        row = times.get(peer.name, {})
        measured = [row.get(f"latency_{name}_ms") for name in ("p50", "p90", "p99")]
        cells = [f"{scores[peer.name][name]:.1f}" for name in names]
        cells += ["" if value is None else f"{value:.2f}" for value in measured]
        if "failed" in row:
            cells[len(names)] = row["failed"]
        elif row:
            cells += [f"{row['throughput_images_per_s']:.1f}", f"{row['memory_peak_mib']:.0f}"]
            cells.append(f"{row['foreign_load']:.0%}{' !' if row['disturbed'] else ''}")
        table.add_row(peer.name, *cells)
    console = Console()
    console.width = max(console.width, 130)  # in a pipe rich would squeeze the names
    console.print(table)


def main(config: TrackerPeersConfig) -> dict[str, Any]:
    """Measure, print a table and write the JSON; returns its content. Raises UserError."""
    if config.video is not None and not config.box:
        raise UserError("--video needs --box: where the object is in its first frame")
    threads = config.threads or usable_cpus()
    with tempfile.TemporaryDirectory() as folder:
        peers = list_peers(config, Path(folder) / "vittrack")
        sequences = open_sequences("folder", config.sequences) if config.sequences else []
        scores = accuracy(peers, sequences, threads) if sequences else {}
        times = speed(peers, config, threads)
    show(peers, scores, times)
    result = {
        "config": config.model_dump(mode="json"),
        "machine": {**describe(), "opencv": cv2.__version__},
        "threads": threads,
        "auc": scores,
        "end_to_end": times,
    }
    if config.out is not None:
        config.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main(tyro.cli(TrackerPeersConfig))
