"""Small but complete artifacts for tests: a seeded network built with onnx.helper, no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemim.edge.artifact import Artifact, Manifest, create, describe_file, onnx_metadata
from edgemim.edge.images import Preprocessing


def tiny_model(size: int, classes: int, width: int = 32, layers: int = 1, batch: int | None = None) -> onnx.ModelProto:
    """images [b, 3, size, size] -> flatten -> `layers` × (MatMul, Tanh) -> logits [b, classes]."""
    generator = np.random.default_rng(7)
    nodes = [helper.make_node("Flatten", ["images"], ["hidden0"])]
    weights, rows = [], 3 * size * size
    for layer in range(layers):
        matrix = (generator.standard_normal((rows, width)) / np.sqrt(rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"weight{layer}"))
        nodes.append(helper.make_node("MatMul", [f"hidden{layer}", f"weight{layer}"], [f"product{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"product{layer}"], [f"hidden{layer + 1}"]))
        rows = width
    head = (5 * generator.standard_normal((rows, classes)) / np.sqrt(rows)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes.append(helper.make_node("MatMul", [f"hidden{layers}", "head"], ["logits"]))
    first = batch or "batch"
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [first, 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [first, classes])
    graph = helper.make_graph(nodes, "tiny", [images], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def tiny_artifact(
    folder: Path,
    *,
    size: int = 16,
    labels: tuple[str, ...] = ("astronaut", "chelsea", "coffee", "rocket"),
    width: int = 32,
    layers: int = 1,
    batch: int | None = None,
    int8: bool = False,
    source: dict[str, str] | None = None,
    operator: str = "Tanh",
) -> Artifact:
    """Write and open an artifact with model.onnx (onnx-fp32) and, if asked, model-int8.onnx (onnx-int8).

    Another `operator` than Tanh makes a model that no runtime may know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        name="tiny",
        input_shape=(batch, 3, size, size),
        preprocessing=Preprocessing(image_size=size, crop_pct=0.9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)),
        labels=labels,
        opset=18,
        source=source or {},
    )
    model = tiny_model(size, len(labels), width, layers, batch)
    for node in model.graph.node:
        node.op_type = operator if node.op_type == "Tanh" else node.op_type
    for key, value in onnx_metadata(manifest).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, folder / "model.onnx")
    files = {"onnx-fp32": describe_file(folder, "model.onnx", format="onnx", precision="fp32")}
    if int8:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(folder / "model.onnx", folder / "model-int8.onnx")
        files["onnx-int8"] = describe_file(folder, "model-int8.onnx", format="onnx", precision="int8")
    return create(folder, manifest.model_copy(update={"files": files}))
