"""INT8 in the form that ONNX Runtime's CPU kernels run fastest on a ViT, alone or with a convolutional head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from edgemim.errors import ModelRefused
from edgemim.export.onnx import first_line, quietly


def quantize_dynamic_onnx(source: Path, target: Path, *, full_range: bool, floats: Sequence[str] = ()) -> None:
    """Write an ONNX model with INT8 weights whose activations are quantised as they come; no calibration.

    Linear layers only: attention products have no weights and stay in float. Chosen by measurement on ViT-Tiny 224 and
    micro ViTs (one thread, time over FP32's): signed weights 0.54 and 0.61–0.63, per channel or not; unsigned weights
    0.79 and 0.84; static without attention 0.57 and 0.71; weight-only 8 bits 0.93 and 1.13. Per channel costs nothing
    on the larger and 3 % on the smaller, and halves the error.

    Args:
        source: the FP32 model.
        target: file to write; metadata_props come along.
        full_range: 8-bit weights, for CPUs that add products in 32 bits (VNNI and its like); else 7-bit ones, which
            cannot overflow the 16-bit sums of older CPUs and take no more time.
        floats: names of nodes that stay in float.

    Raises:
        ModelRefused: if ONNX Runtime cannot handle the model.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with quietly():
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_exclude=list(floats),
                per_channel=True,
                reduce_range=not full_range,
                weight_type=QuantType.QInt8,
            )
    except OSError:  # a full disk is no fault of the model
        raise
    except Exception as error:  # its errors share no base class
        raise ModelRefused(f"ONNX Runtime cannot quantise {source}: {first_line(error)}") from error


def inner_convolutions(source: Path) -> list[str]:
    """Names of an ONNX model's convolutions but those that read its input: a segmentation head's, not a patch embedding."""
    graph = onnx.load(source, load_external_data=False).graph
    inputs = {value.name for value in graph.input}
    return [node.name for node in graph.node if node.op_type == "Conv" and node.input[0] not in inputs]


def quantize_convolutions_onnx(
    source: Path,
    target: Path,
    calibration: Sequence[dict[str, np.ndarray]],
    *,
    full_range: bool,
    floats: Sequence[str] = (),
) -> None:
    """Write an ONNX model whose inner convolutions take fixed 8-bit ranges and whose linear layers dynamic ones.

    Dynamic convolutions are slow there, and left in float they are most of a segmentation model's time. Measured on a
    micro ViT with Semantic-FPN (one thread, time over FP32's, equal pixels): linear layers dynamic alone 0.85 and
    99.8 %; convolutions static alone 0.77 and 99.7 %; both static 0.65 and 99.6 %; this 0.60 and 99.7 %. The patch
    embedding stays in float, and so does everything between the convolutions. Convolutional networks gain too (224 px,
    least of 60 interleaved runs, one thread, a busy machine): ResNet-18 34.5 to 15.6 ms, MobileNetV3-Large 6.2 to 5.5.

    Args:
        source: the FP32 model.
        target: file to write; metadata_props come along.
        calibration: float32 inputs by name, each as large as the model takes (one image, or its fixed batch).
        full_range: 8-bit weights; else 7-bit ones, as in `quantize_dynamic_onnx`.
        floats: names of nodes that stay in float.

    Raises:
        ModelRefused: if ONNX Runtime cannot handle the model.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(self._left, None)

    between = target.with_name("convolutions-int8.onnx")
    try:
        with quietly():
            quantize_static(
                source,
                between,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_quantize=[name for name in inner_convolutions(source) if name not in floats],
                per_channel=True,
                reduce_range=not full_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        quantize_dynamic_onnx(between, target, full_range=full_range, floats=floats)
    except (OSError, ModelRefused):
        raise
    except Exception as error:  # its errors share no base class
        raise ModelRefused(f"ONNX Runtime cannot quantise {source}: {first_line(error)}") from error
    finally:
        between.unlink(missing_ok=True)
