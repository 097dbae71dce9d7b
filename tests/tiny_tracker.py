"""A small tracker that really tracks, for tests: it follows a colour; built with onnx.helper, no torch.

python tests/tiny_tracker.py FOLDER     writes FOLDER/artifact and FOLDER/video.avi
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemim.edge.artifact import Artifact, Manifest, create, describe_file, onnx_metadata
from edgemim.edge.images import Preprocessing
from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.inference import TrackingInference

TEMPLATE, SEARCH, PATCH = 64, 128, 8
GRID = SEARCH // PATCH
_MAPS = ("score", "size", "offset")


def moving_target(frames: int = 30, width: int = 160, height: int = 120) -> tuple[list[np.ndarray], list[Box]]:
    """uint8 RGB frames of an orange, textured square of 24 pixels on a grey ground, and where it is."""
    generator = np.random.default_rng(5)
    coarse = generator.integers(60, 180, (height // 8, width // 8)).astype(np.uint8)
    ground = np.repeat(cv2.resize(coarse, (width, height))[..., None], 3, axis=2)
    texture = generator.integers(-15, 15, (24, 24, 1))
    patch = np.clip(np.array([240, 120, 20]) + texture, 0, 255).astype(np.uint8)
    images, boxes = [], []
    for number in range(frames):
        angle = 2 * np.pi * number / 60
        left, top = (
            round(width / 2 - 12 + 0.3 * width * np.sin(angle)),
            round(height / 2 - 12 + 0.25 * height * np.cos(angle)),
        )
        image = ground.copy()
        image[top : top + 24, left : left + 24] = patch
        images.append(image)
        boxes.append(Box(left, top, 24, 24))
    return images, boxes


def write_video(path: Path, images: list[np.ndarray], codec: str = "MJPG", fps: float = 25) -> Path:
    """Write RGB frames of one size as a video."""
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    assert writer.isOpened()
    for image in images:
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def tiny_tracker(folder: Path, form: Literal["joint", "cached"] = "joint", size_rate: float = 1.0) -> Artifact:
    """Write and open a tracking artifact: template 64, search 128, maps of 16×16; sizes never change, cells are coarse."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        name="tiny-tracker",
        task="tracking",
        input_name="search",
        input_shape=(1, 3, SEARCH, SEARCH),
        inputs={"template": (1, 3, TEMPLATE, TEMPLATE), "search": (1, 3, SEARCH, SEARCH)},
        output_names=_MAPS,
        preprocessing=Preprocessing(image_size=SEARCH, crop_pct=1.0, interpolation="bilinear"),
        tracking=TrackingInference(form=form, template_size=TEMPLATE, search_size=SEARCH, size_rate=size_rate),
        opset=18,
    )
    graphs = {"onnx-fp32": _joint()} if form == "joint" else {"onnx-fp32": _search(), "onnx-fp32-template": _encode()}
    files = {}
    for key, (nodes, inputs, outputs) in graphs.items():
        model = _model(nodes, inputs, outputs)
        for name, value in onnx_metadata(manifest).items():
            model.metadata_props.add(key=name, value=value)
        onnx.save(model, folder / f"{key}.onnx")
        files[key] = describe_file(folder, f"{key}.onnx", format="onnx", precision="fp32")
    return create(folder, manifest.model_copy(update={"files": files}))


_Shapes = dict[str, list[int]]
_Graph = tuple[list[onnx.NodeProto], _Shapes, _Shapes]
_OUTPUTS: _Shapes = {"score": [1, 1, GRID, GRID], "size": [1, 2, GRID, GRID], "offset": [1, 2, GRID, GRID]}
_CACHE: _Shapes = {"cache_k": [1, 1, 1, 3], "cache_v": [1, 1, 1, 3]}


def _joint() -> _Graph:
    nodes = [*_colour(), helper.make_node("Mul", ["colour", "zero"], ["sameness"]), *_compare()]
    return nodes, {"template": [1, 3, TEMPLATE, TEMPLATE], "search": [1, 3, SEARCH, SEARCH]}, _OUTPUTS


def _encode() -> _Graph:
    """The colour as keys; as values what is added to it, nothing."""
    nodes = [
        *_colour(),
        helper.make_node("Reshape", ["colour", "row"], ["cache_k"]),
        helper.make_node("Mul", ["cache_k", "zero"], ["cache_v"]),
    ]
    return nodes, {"template": [1, 3, TEMPLATE, TEMPLATE]}, _CACHE


def _search() -> _Graph:
    nodes = [
        helper.make_node("Reshape", ["cache_k", "column"], ["colour"]),
        helper.make_node("Reshape", ["cache_v", "column"], ["sameness"]),
        *_compare(),
    ]
    return nodes, {"search": [1, 3, SEARCH, SEARCH], **_CACHE}, _OUTPUTS


def _colour() -> list[onnx.NodeProto]:
    """The template's mean colour where the target is: the middle half."""
    return [
        helper.make_node("Slice", ["template", "begin", "end", "axes"], ["middle"]),
        helper.make_node("GlobalAveragePool", ["middle"], ["colour"]),
    ]


def _compare() -> list[onnx.NodeProto]:
    """How near each cell and its neighbours are to the colour; the size stays, the offset is a cell's middle."""
    return [
        helper.make_node("Add", ["colour", "sameness"], ["target"]),
        helper.make_node("AveragePool", ["search"], ["cells"], kernel_shape=[PATCH] * 2, strides=[PATCH] * 2),
        helper.make_node("Sub", ["cells", "target"], ["difference"]),
        helper.make_node("Mul", ["difference", "difference"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "channels"], ["distance"], keepdims=1),
        helper.make_node("Neg", ["distance"], ["nearness"]),
        helper.make_node("Exp", ["nearness"], ["likeness"]),
        helper.make_node(
            "AveragePool", ["likeness"], ["smooth"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
        ),
        helper.make_node("Clip", ["smooth", "least", "most"], ["score"]),
        helper.make_node("Concat", ["score", "score"], ["both"], axis=1),
        helper.make_node("Mul", ["both", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "quarter"], ["size"]),
        helper.make_node("Add", ["nothing", "half"], ["offset"]),
    ]


def _model(nodes: list[onnx.NodeProto], inputs: _Shapes, outputs: _Shapes) -> onnx.ModelProto:
    values: dict[str, np.ndarray] = {
        **{name: np.array(value, np.float32) for name, value in (("zero", 0), ("quarter", 0.25), ("half", 0.5))},
        **{name: np.array(value, np.float32) for name, value in (("least", 1e-4), ("most", 1 - 1e-4))},
        **{
            name: np.array([side, side], np.int64)
            for name, side in (("begin", TEMPLATE // 4), ("end", 3 * TEMPLATE // 4))
        },
        "axes": np.array([2, 3], np.int64),
        "channels": np.array([1], np.int64),
        "row": np.array([1, 1, 1, 3], np.int64),
        "column": np.array([1, 3, 1, 1], np.int64),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "tiny-tracker",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    tiny_tracker(root / "artifact")
    write_video(root / "video.avi", moving_target()[0])
