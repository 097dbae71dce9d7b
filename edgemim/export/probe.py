"""A model file opened so that tensors inside it can be read, on the runtime that its format belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx

from edgemim.errors import ModelRefused

Probe = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Inputs by name -> the tensors asked for by name, as float arrays."""


def open_probe(path: Path, tensors: Iterable[str]) -> Probe:
    """Open a file on one thread; with no tensors named, its outputs are read. A tensor that it has no more is left out.

    An ONNX file runs on ONNX Runtime, an OpenVINO one (.xml) on OpenVINO. Raises ModelRefused if that cannot run it.
    """
    wanted = list(dict.fromkeys(tensors))
    try:
        return _openvino(path, wanted) if path.suffix == ".xml" else _onnxruntime(path, wanted)
    except Exception as error:  # the runtimes' errors share no base class
        reason = " ".join(str(error).split())[:300]
        raise ModelRefused(f"the inside of {path} cannot be read: {reason}") from error


def _onnxruntime(path: Path, wanted: list[str]) -> Probe:
    import onnxruntime

    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    own = [output.name for output in model.graph.output]
    names = [name for name in wanted if name in made] if wanted else own
    for name in names:
        if name not in own:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))

    return run


def _openvino(path: Path, wanted: list[str]) -> Probe:
    from edgemim.edge.runtime.openvino import core

    model = core().read_model(path)
    own = [output.get_any_name() for output in model.outputs]
    made = {name for node in model.get_ordered_ops() for output in node.outputs() for name in output.get_names()}
    names = [name for name in wanted if name in made] if wanted else own
    inside = [name for name in names if name not in own]
    if inside:
        model.add_outputs(inside)
    settings = {"INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    request = core().compile_model(model, "CPU", settings).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        request.infer(inputs)
        return {name: np.array(request.get_tensor(name).data) for name in names}

    return run
