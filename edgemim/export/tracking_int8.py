"""INT8 files of a tracker: one graph, or both of the cached form, judged together by the boxes that they find."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.edge.artifact import Artifact, ModelFile
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX
from edgemim.errors import UserError
from edgemim.export.fidelity import Speed, thread_counts, time_models
from edgemim.export.onnxruntime import inner_convolutions, quantize_convolutions_onnx, quantize_dynamic_onnx
from edgemim.export.openvino import quantize_transformer
from edgemim.export.quantize import Int8Config, Maker, Target, describe_int8, pick_isa
from edgemim.export.tracking import PairSession, open_tracker
from edgemim.tasks.comparison import Comparison
from edgemim.tasks.tracking import TrackingTask

_RUNTIME = {"onnx-int8": "onnxruntime", "openvino-int8": "openvino"}
_ATTEMPTS = 3
_RECIPES = {
    "onnx-int8": "ONNX Runtime, per channel: the head's Conv static, MatMul and Gemm dynamic",
    "openvino-int8": "NNCF post-training, model_type=TRANSFORMER, patch embedding in float",
}
Inputs = dict[str, np.ndarray]


def build(
    artifact: Artifact, key: Target, trial: Path, task: TrackingTask, config: Int8Config
) -> tuple[dict[str, ModelFile], dict[str, Any]]:
    """Quantise each graph of a tracker. Raises UserError without training pairs, ModelRefused."""
    isa = pick_isa(config.isa)
    pairs = list(task.calibration_pairs(config.calibration))
    if not pairs:
        raise UserError("there are no training pairs to calibrate on; give --data DIR with pictures")
    fp32 = open_tracker(artifact)
    cached = artifact.manifest.tracking is not None and artifact.manifest.tracking.form == "cached"
    entries = {}
    for suffix in (TEMPLATE_SUFFIX, "") if cached else ("",):
        inputs = [_of_graph(fp32, pair, suffix) for pair in pairs]
        name = f"model-int8{suffix}.onnx" if key == "onnx-int8" else f"openvino-int8{suffix}.xml"
        _quantize(artifact.file(f"onnx-fp32{suffix}"), trial / name, inputs, full_range=isa == "vnni")
        entries[key + suffix] = describe_int8(artifact.folder, trial / name, isa)
    values = b"".join(array.tobytes() for pair in pairs for array in pair.values())
    digest = hashlib.sha256(values).hexdigest()
    return entries, {"recipe": _RECIPES[key], "calibration_images": len(pairs), "calibration_sha256": digest}


def _of_graph(fp32: PairSession, pair: Inputs, suffix: str) -> Inputs:
    """What a graph takes of a pair."""
    return {"template": pair["template"]} if suffix else fp32.searching(pair)


def _quantize(source: Path, target: Path, inputs: Sequence[Inputs], *, full_range: bool) -> None:
    if target.suffix == ".xml":
        quantize_transformer(source, target, inputs, input_name="", full_range=full_range)
    elif inner_convolutions(source):
        quantize_convolutions_onnx(source, target, inputs, input_name="", full_range=full_range)
    else:
        quantize_dynamic_onnx(source, target, full_range=full_range)


def measure(candidate: Artifact, key: Target, task: TrackingTask, config: Int8Config) -> tuple[Comparison, list[Speed]]:
    """The boxes of both on held-out pairs, and the time of what runs on every frame."""
    runtime = _RUNTIME[key]
    fp32, int8 = open_tracker(candidate, runtime=runtime), open_tracker(candidate, key)
    comparison = task.compare(fp32, int8, config.images)
    pair, _ = next(iter(task.evaluation_pairs(1)))
    inputs, speeds = fp32.searching(pair), []
    for threads in thread_counts(config.threads):
        original = open_tracker(candidate, runtime=runtime, threads=threads).session
        quantised = open_tracker(candidate, key, threads=threads).session
        speeds.append(time_models(original, quantised, inputs, seconds=config.seconds, attempts=_ATTEMPTS))
    return comparison, speeds


TRACKER_MAKER = Maker(build, measure)
