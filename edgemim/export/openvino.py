"""OpenVINO's own files: an ONNX model converted, or quantised to INT8 by NNCF in its mode for transformers."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.edge.machine import INSTALL
from edgemim.errors import MissingLibrary, ModelRefused
from edgemim.export.onnx import first_line, quietly


def missing_packages(*, quantize: bool) -> list[str]:
    """Packages that are not installed out of those that conversion, or quantisation, needs."""
    wanted = ("openvino", "nncf") if quantize else ("openvino",)
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def require_packages(*, quantize: bool) -> None:
    """Raises MissingLibrary if a package is not installed."""
    missing = missing_packages(quantize=quantize)
    if missing:
        what = "INT8 for OpenVINO" if quantize else "OpenVINO's format"
        raise MissingLibrary(f"{what} needs {' and '.join(missing)}: {INSTALL['openvino']}")


def convert(onnx_path: Path, xml_path: Path) -> None:
    """Write an ONNX model as OpenVINO IR (.xml, weights in the .bin beside it), weights in float32. Raises ModelRefused."""
    import openvino

    from edgemim.edge.runtime.openvino import core

    try:
        with quietly():
            openvino.save_model(core().read_model(onnx_path), xml_path, compress_to_fp16=False)
    except RuntimeError as error:
        raise ModelRefused(f"OpenVINO {openvino.__version__} refuses {onnx_path}: {first_line(error)}") from error


def quantize_transformer(
    onnx_path: Path,
    xml_path: Path,
    calibration: Sequence[dict[str, np.ndarray]],
    *,
    full_range: bool,
    floats: Sequence[str] = (),
) -> None:
    """Write an ONNX model as INT8 OpenVINO IR.

    NNCF with `model_type=TRANSFORMER`: SmoothQuant, then quantised linear layers and attention products; softmax,
    LayerNorm and residual sums stay in float (without that mode, cosine 0.93 was measured). The patch embedding stays
    in float too: on trained micro ViTs its quantisation alone took the cosine from 0.9999 to 0.961 and agreement from
    99.8 to 88 %, for 2 % of the products.

    Args:
        onnx_path: the FP32 model.
        xml_path: file to write; the weights go into the .bin beside it.
        calibration: float32 inputs by name, each as large as the model takes (one image, or its fixed batch).
        full_range: 8-bit weights, for CPUs that add products in 32 bits (VNNI and its like); else 7-bit ones, which
            cannot overflow the 16-bit sums of older CPUs.
        floats: names of the ONNX model's nodes that stay in float.

    Raises:
        ModelRefused: if OpenVINO or NNCF cannot handle the model.
    """
    # NNCF reports its use to a server unless it takes the surroundings for a CI job.
    os.environ.setdefault("NNCF_CI", "1")
    with quietly():
        import nncf
        import openvino

    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    from edgemim.edge.runtime.openvino import core

    overflow_fix = OverflowFix.DISABLE if full_range else OverflowFix.ENABLE
    try:
        with quietly():
            model = core().read_model(onnx_path)
            quantized = nncf.quantize(
                model,
                nncf.Dataset(list(calibration)),
                subset_size=len(calibration),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=[*input_convolutions(model), *_present(model, floats)]),
                advanced_parameters=AdvancedQuantizationParameters(overflow_fix=overflow_fix),
            )
            openvino.save_model(quantized, xml_path, compress_to_fp16=False)
    except Exception as error:  # NNCF's errors share no base class
        raise ModelRefused(f"NNCF {nncf.__version__} cannot quantise {onnx_path}: {first_line(error)}") from error


def input_convolutions(model: Any) -> list[str]:
    """Names of the convolutions of an OpenVINO model that read its input directly: a ViT's patch embedding."""
    readers = (target.get_node() for parameter in model.inputs for target in parameter.get_target_inputs())
    return [node.get_friendly_name() for node in readers if node.get_type_name() == "Convolution"]


def _present(model: Any, nodes: Sequence[str]) -> list[str]:
    """Those ONNX nodes that OpenVINO's model still has under their names. A name that is none makes NNCF fail."""
    there = {node.get_friendly_name() for node in model.get_ordered_ops()}
    return [name for name in nodes if name in there]
