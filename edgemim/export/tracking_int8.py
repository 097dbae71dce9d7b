"""What quantising needs to know of trackers: one graph, or both of the cached form, judged together by their boxes."""

from __future__ import annotations

from edgemim.edge.artifact import Artifact
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX
from edgemim.errors import UserError
from edgemim.export.fidelity import Speed, thread_counts, time_models
from edgemim.export.int8_config import Int8Config
from edgemim.export.int8_files import SourceGraph, Sources, hash_inputs
from edgemim.export.int8_gate import Maker, runtime_of
from edgemim.export.quantize import ATTEMPTS
from edgemim.export.smoothing import Inputs
from edgemim.export.tracking import PairSession, open_tracker
from edgemim.tasks.comparison import Comparison
from edgemim.tasks.tracking import TrackingTask


def _sources(artifact: Artifact, task: TrackingTask, config: Int8Config) -> Sources:
    pairs = list(task.calibration_pairs(config.calibration))
    if not pairs:
        raise UserError("there are no training pairs to calibrate on; give --data DIR with pictures")
    inputs = _by_graph(artifact, pairs)
    graphs = tuple(SourceGraph(suffix, artifact.file(f"onnx-fp32{suffix}"), inputs[suffix]) for suffix in inputs)
    return Sources(graphs, {"calibration_images": len(pairs), "calibration_sha256": hash_inputs(pairs)})


def _by_graph(artifact: Artifact, pairs: list[Inputs]) -> dict[str, list[Inputs]]:
    """What each graph takes of the pairs, by its suffix; the search graph takes what the FP32 template graph gives."""
    fp32 = open_tracker(artifact)
    cached = artifact.manifest.tracking is not None and artifact.manifest.tracking.form == "cached"
    suffixes = (TEMPLATE_SUFFIX, "") if cached else ("",)
    return {suffix: [_of_graph(fp32, pair, suffix) for pair in pairs] for suffix in suffixes}


def _of_graph(fp32: PairSession, pair: Inputs, suffix: str) -> Inputs:
    return {"template": pair["template"]} if suffix else fp32.searching(pair)


def _compare(candidate: Artifact, key: str, task: TrackingTask, config: Int8Config) -> Comparison:
    fp32 = open_tracker(candidate, runtime=runtime_of(candidate, key))
    return task.compare(fp32, open_tracker(candidate, key), config.images)


def _time(candidate: Artifact, key: str, task: TrackingTask, config: Int8Config) -> list[Speed]:
    """The time of what runs on every frame."""
    runtime, speeds = runtime_of(candidate, key), []
    pair, _ = next(iter(task.evaluation_pairs(1)))
    inputs = open_tracker(candidate, runtime=runtime).searching(pair)
    for threads in thread_counts(config.threads):
        original = open_tracker(candidate, runtime=runtime, threads=threads).session
        quantised = open_tracker(candidate, key, threads=threads).session
        speeds.append(time_models(original, quantised, inputs, seconds=config.seconds, attempts=ATTEMPTS))
    return speeds


def _held_out(artifact: Artifact, task: TrackingTask, count: int) -> dict[str, list[Inputs]]:
    return _by_graph(artifact, [pair for pair, _ in task.evaluation_pairs(count)])


TRACKER_MAKER = Maker(_sources, _compare, _time, _held_out)
