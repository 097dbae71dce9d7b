"""The INT8 files of one target, made of FP32 graphs and calibration inputs: recipes, and what the manifest says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgemim.edge.artifact import ModelFile, describe_file
from edgemim.export.int8_config import Isa, Target
from edgemim.export.onnxruntime import inner_convolutions, quantize_convolutions_onnx, quantize_dynamic_onnx
from edgemim.export.openvino import quantize_transformer
from edgemim.export.smoothing import Inputs, smooth_onnx

_RECIPES = {
    ("onnx-int8", False): "ONNX Runtime dynamic, per channel, MatMul and Gemm",
    (
        "onnx-int8",
        True,
    ): "ONNX Runtime, per channel: Conv but the first (patch embedding, stem) static, MatMul and Gemm dynamic",
    ("openvino-int8", False): "NNCF post-training, model_type=TRANSFORMER, patch embedding in float",
}
Layer = tuple[str, str]
"""The suffix of a graph and the name of one of its nodes."""


@dataclass(frozen=True)
class SourceGraph:
    """One FP32 graph to quantise.

    Attributes:
        suffix: what its key has behind the target: '', or that of a tracker's template.
        path: an ONNX file of the artifact, or one with the same answers.
        inputs: calibration inputs by name, each as large as the graph takes.
    """

    suffix: str
    path: Path
    inputs: Sequence[Inputs]


@dataclass(frozen=True)
class Sources:
    """All graphs of an artifact, and what to record of how they came about."""

    graphs: tuple[SourceGraph, ...]
    record: dict[str, Any]


def smoothed_sources(sources: Sources, folder: Path, alpha: float) -> Sources:
    """The same graphs after SmoothQuant, in files of that folder. A graph without a place for it stays as it is.

    The record's `smoothed` counts the LayerNorms that were folded; None where there are none. Raises as `smooth_onnx`.
    """
    graphs, folded, left = [], 0, 0
    for graph in sources.graphs:
        target = folder / f"smoothed{graph.suffix}.onnx"
        done = smooth_onnx(graph.path, target, graph.inputs, alpha=alpha)
        graphs.append(replace(graph, path=target) if done.norms else graph)
        folded, left = folded + done.norms, left + done.left
    smoothed = {"alpha": alpha, "norms": folded, "norms_left": left} if folded else None
    return Sources(tuple(graphs), {**sources.record, "smoothed": smoothed})


def hash_inputs(inputs: Iterable[Inputs]) -> str:
    """SHA-256 of the values of calibration inputs, in order."""
    digest = hashlib.sha256()
    for given in inputs:
        for array in given.values():
            digest.update(array.tobytes())
    return digest.hexdigest()


def make_int8(
    folder: Path,
    key: Target,
    graphs: Sequence[SourceGraph],
    place: Path,
    *,
    isa: Isa,
    floats: Collection[Layer] = (),
    execution: Literal["f32", "bf16"] = "f32",
) -> tuple[dict[str, ModelFile], str]:
    """Write the files of a target into `place`, a folder inside the artifact's.

    Args:
        folder: the artifact's folder.
        key: the target.
        graphs: what to quantise.
        place: where to write; made if need be.
        isa: 'vnni' or 'portable'.
        floats: layers that stay in float.
        execution: what OpenVINO computes float parts in; of ONNX files it is always float32.

    Returns:
        Manifest entries by key, and the recipe's name. Raises ModelRefused.
    """
    place.mkdir(exist_ok=True)
    entries, convolutional = {}, False
    for graph in graphs:
        names = [node for suffix, node in floats if suffix == graph.suffix]
        options = {"full_range": isa == "vnni", "floats": names}
        inner = key == "onnx-int8" and bool(set(inner_convolutions(graph.path)) - set(names))
        target = place / (f"model-int8{graph.suffix}.onnx" if key == "onnx-int8" else f"{key}{graph.suffix}.xml")
        if key == "openvino-int8":
            quantize_transformer(graph.path, target, graph.inputs, **options)
        elif inner:
            quantize_convolutions_onnx(graph.path, target, graph.inputs, **options)
        else:
            quantize_dynamic_onnx(graph.path, target, **options)
        entries[key + graph.suffix] = describe_int8(folder, target, isa, execution)
        convolutional |= inner
    return entries, _RECIPES[key, convolutional]


def describe_int8(folder: Path, path: Path, isa: Isa, execution: Literal["f32", "bf16"] = "f32") -> ModelFile:
    """The manifest entry of an INT8 file that lies in a folder inside the artifact's, weights beside OpenVINO's."""
    place = path.relative_to(folder).as_posix()
    openvino = path.suffix == ".xml"
    return describe_file(
        folder,
        place,
        format="openvino" if openvino else "onnx",
        precision="int8",
        companions=[place.removesuffix(".xml") + ".bin"] if openvino else [],
        isa=isa,
        execution=execution if openvino else "f32",
        notes="8-bit weights" if isa == "vnni" else "7-bit weights, safe on CPUs without 8-bit dot products",
    )
