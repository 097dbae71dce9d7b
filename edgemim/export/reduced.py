"""Files in float16, at half the size, and execution in bfloat16 where the CPU has its instructions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from edgemim.edge.artifact import ModelFile, describe_file
from edgemim.edge.machine import BF16_FLAGS, cpu_flags
from edgemim.errors import ModelRefused, UserError
from edgemim.export.onnx import first_line, quietly

REDUCED_TOLERANCES = {"fp16": 5e-3, "bf16": 0.05}
"""Largest difference from PyTorch over the largest output: some ten times what trained ViT-Tinys and trackers showed."""
FLOAT_OPS = ("LayerNormalization", "Softmax")
"""What sums over many values stays in float32: half a float's range and digits are where ViTs lose their answers."""
_NOTES = {
    "onnx": "float16 but for LayerNorm and Softmax, float32 in and out; for GPUs (slow on CPUs, which convert at each step)",
    "openvino": "float16 weights, half the size; CPUs compute with them in float32",
}


def write_fp16(folder: Path, files: Mapping[str, ModelFile], *, openvino: bool) -> dict[str, ModelFile]:
    """Write a float16 file for each FP32 ONNX file of a folder; returns their manifest entries by key.

    Args:
        folder: where they lie, and the new ones will.
        files: manifest entries; those whose key begins with onnx-fp32 are the sources.
        openvino: write OpenVINO IR too.

    Raises:
        ModelRefused: if a graph cannot be converted.
    """
    entries: dict[str, ModelFile] = {}
    for key, entry in files.items():
        if not key.startswith("onnx-fp32"):
            continue
        suffix = key.removeprefix("onnx-fp32")
        source, name = folder / entry.path, f"model-fp16{suffix}.onnx"
        halve_onnx(source, folder / name)
        entries["onnx-fp16" + suffix] = _describe(folder, name)
        if openvino:
            name = f"openvino-fp16{suffix}.xml"
            compress_openvino(source, folder / name)
            entries["openvino-fp16" + suffix] = _describe(folder, name)
    return entries


def require_bf16(*, openvino: bool) -> None:
    """Raises UserError where execution in bfloat16 cannot be judged."""
    if not openvino:
        raise UserError("bfloat16 is for OpenVINO's own files, and none is made; add --openvino, or leave bf16 out")
    if not BF16_FLAGS & set(cpu_flags()):
        raise UserError(
            "this CPU has no instructions for bfloat16 (AVX512_BF16, AMX), so that what it gives cannot be judged here; "
            "leave bf16 out"
        )


def write_bf16(files: Mapping[str, ModelFile]) -> dict[str, ModelFile]:
    """Entries that name each of OpenVINO's FP32 files a second time, to be computed in bfloat16."""
    return {
        key.replace("fp32", "bf16"): entry.model_copy(
            update={"precision": "bf16", "execution": "bf16", "notes": "the FP32 file, computed in bfloat16"}
        )
        for key, entry in files.items()
        if key.startswith("openvino-fp32")
    }


def precision_of(name: str) -> str:
    """fp16 or bf16 where the key of a file names it, else fp32."""
    return next((precision for precision in REDUCED_TOLERANCES if precision in name.split("-")), "fp32")


def _describe(folder: Path, name: str) -> ModelFile:
    xml = name.endswith(".xml")
    format = "openvino" if xml else "onnx"
    companions = [name.removesuffix(".xml") + ".bin"] if xml else []
    return describe_file(folder, name, format=format, precision="fp16", companions=companions, notes=_NOTES[format])


def halve_onnx(source: Path, target: Path) -> None:
    """Write an ONNX model with weights and arithmetic in float16 but for `FLOAT_OPS`; inputs and outputs stay float32.

    Raises:
        ModelRefused: if it cannot be converted, or a weight does not fit into float16.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        with quietly():
            blocked = [*DEFAULT_OP_BLOCK_LIST, *FLOAT_OPS]
            model = convert_float_to_float16(onnx.load(source), keep_io_types=True, op_block_list=blocked)
            _drop_doubles(model.graph)
            OnnxModel(model).topological_sort()
            onnx.checker.check_model(model, full_check=True)
            onnx.save(model, target)
    except OSError:  # a full disk is no fault of the model
        raise
    except Exception as error:  # its errors share no base class
        raise ModelRefused(f"{source} cannot be written in float16: {first_line(error)}") from error


def _drop_doubles(graph: onnx.GraphProto) -> None:
    """Of a weight that several float32 nodes share, the converter writes the same cast for each of them."""
    nodes: dict[tuple[str, ...], onnx.NodeProto] = {}
    for node in graph.node:
        nodes.setdefault(tuple(node.output), onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes.values())


def compress_openvino(source: Path, target: Path) -> None:
    """Write an ONNX model as OpenVINO IR whose weights are float16 in the file. Raises ModelRefused."""
    import openvino

    from edgemim.edge.runtime.openvino import core

    try:
        with quietly():
            openvino.save_model(core().read_model(source), target, compress_to_fp16=True)
    except RuntimeError as error:
        raise ModelRefused(f"OpenVINO {openvino.__version__} refuses {source}: {first_line(error)}") from error
