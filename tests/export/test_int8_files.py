"""INT8 files are made of any FP32 graph; layers that are named stay in float; smoothing is recorded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hard_to_quantise import inject_outliers

from edgemim.export.graph_blocks import blocks_of
from edgemim.export.int8_config import Target
from edgemim.export.int8_files import SourceGraph, Sources, hash_inputs, make_int8, smoothed_sources
from edgemim.export.openvino import missing_packages


@pytest.fixture
def graph(artifact, held_out_images: np.ndarray) -> SourceGraph:
    return SourceGraph("", artifact.file(), [{"images": image[None]} for image in held_out_images[:8]])


def float_layers(path) -> set[str]:
    """Names of the block.nodes that are still in float."""
    if path.suffix == ".onnx":
        return {node.name for node in onnx.load(path).graph.node if node.op_type in ("MatMul", "Gemm", "Conv")}
    import openvino

    found = set()
    for node in openvino.Core().read_model(path).get_ordered_ops():
        if node.get_type_name() in ("MatMul", "Convolution"):
            quantised = node.input_value(0).get_node().get_type_name() == "FakeQuantize"
            found |= set() if quantised else {node.get_friendly_name()}
    return found


@pytest.mark.parametrize("key", ["onnx-int8", "openvino-int8"])
def test_named_layers_stay_in_float(artifact, graph: SourceGraph, key: Target) -> None:
    if key == "openvino-int8" and missing_packages(quantize=True):
        pytest.skip("openvino and nncf are not installed")
    block = next(block for block in blocks_of(graph.path) if block.name == "blocks.1")
    place = artifact.folder / ".trial"
    entries, recipe = make_int8(artifact.folder, key, [graph], place, isa="vnni")
    plain = float_layers(artifact.folder / entries[key].path)
    floats = [("", name) for name in block.nodes]
    entries, same = make_int8(artifact.folder, key, [graph], place, isa="vnni", floats=floats)
    assert same == recipe and not plain >= set(block.nodes)
    added = float_layers(artifact.folder / entries[key].path) - plain
    assert added and added <= set(block.nodes)
    assert set(block.nodes) <= plain | added


def test_smoothed_sources_are_new_files_and_counted(artifact, graph: SourceGraph, tmp_path) -> None:
    inject_outliers(artifact.file(), tmp_path / "hard.onnx", 50.0)
    sources = Sources((SourceGraph("", tmp_path / "hard.onnx", graph.inputs),), {"calibration_images": 8})
    smoothed = smoothed_sources(sources, tmp_path, 0.5)
    assert smoothed.record == {"calibration_images": 8, "smoothed": {"alpha": 0.5, "norms": 5, "norms_left": 0}}
    assert smoothed.graphs[0].path == tmp_path / "smoothed.onnx"
    assert sources.record == {"calibration_images": 8}


def test_the_hash_is_of_the_values(graph: SourceGraph) -> None:
    inputs = list(graph.inputs)
    assert hash_inputs(inputs) == hash_inputs(inputs) != hash_inputs(inputs[:-1])
    assert hash_inputs(inputs) != hash_inputs(inputs[::-1])


def test_bfloat16_is_written_down_for_openvino_alone(artifact, graph: SourceGraph) -> None:
    place = artifact.folder / ".trial"
    keys: list[Target] = ["onnx-int8"] if missing_packages(quantize=True) else ["onnx-int8", "openvino-int8"]
    found = {
        key: make_int8(artifact.folder, key, [graph], place, isa="vnni", execution="bf16")[0][key].execution
        for key in keys
    }
    assert found == {key: "bf16" if key == "openvino-int8" else "f32" for key in keys}
