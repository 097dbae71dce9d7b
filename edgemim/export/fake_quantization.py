"""A PyTorch model that computes as INT8 would, with ranges that learn: NNCF says where to quantise and from which range on.

NNCF's own quantisers are replaced by modules over torch's operators: theirs compile C++ on the user's machine at the first
call, or fail after a minute of it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemim.errors import ModelRefused
from edgemim.export.onnx import first_line, quietly

_HALF = 2
"""7-bit weights have half the integers of 8-bit ones."""


class LearnedRange(nn.Module):
    """Rounds to 8 bits within a range whose width is learnt (LSQ, arXiv 1902.08153), gradients passing straight through.

    The logarithm of the step is the parameter: it stays positive, and a step of Adam changes it by a share, whatever the
    magnitude of what is quantised. Zero points stay where calibration found them.
    """

    def __init__(self, low: int, high: int, step: Tensor, zero: Tensor, *, axis: int | None = None) -> None:
        """Take a range.

        Args:
            low: least integer.
            high: largest integer.
            step: what 1 stands for; [1], or [channels] with an axis.
            zero: integer that stands for 0, like `step`.
            axis: which axis the channels are; None for one step for all.
        """
        super().__init__()
        self.low, self.high, self.axis = low, high, axis
        self.log_step = nn.Parameter(step.detach().float().flatten().log())
        self.register_buffer("zero", zero.detach().float().flatten())

    def forward(self, x: Tensor) -> Tensor:
        """The nearest values that INT8 has, of the same shape."""
        step, zero = self.log_step.exp(), self.get_buffer("zero")
        if self.axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(x, step, zero, self.low, self.high, 1.0)
        return torch._fake_quantize_learnable_per_channel_affine(x, step, zero, self.axis, self.low, self.high, 1.0)


def fake_quantized(module: nn.Module, inputs: Sequence[np.ndarray], *, full_range: bool) -> nn.Module:
    """A copy of a model with LearnedRanges where NNCF's mode for transformers quantises, calibrated; in evaluation mode.

    The patch embedding stays in float, as in `edgemim.export.openvino.quantize_transformer`, and so do softmax, LayerNorm
    and residual sums.

    Args:
        module: of normalised images [b, 3, s, s], on the CPU; not changed.
        inputs: float32 arrays of such images, to take ranges from.
        full_range: 8-bit weights, else 7-bit ones.

    Raises:
        ModelRefused: if NNCF cannot handle the model.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else NNCF reports its use to a server
    with quietly():
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
        )

    parameters = AdvancedQuantizationParameters(
        smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1),  # it would add products; it is folded before
        disable_bias_correction=True,
    )
    images = [torch.from_numpy(x) for x in inputs]
    copied = copy.deepcopy(module).eval()
    try:
        with quietly(), torch.no_grad():
            student = nncf.quantize(
                copied,
                nncf.Dataset(images),
                subset_size=len(images),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=_image_readers(copied, images[0]), validate=False),
                advanced_parameters=parameters,
            )
    except Exception as error:  # NNCF's errors share no base class
        raise ModelRefused(f"NNCF {nncf.__version__} cannot quantise the PyTorch model: {first_line(error)}") from error
    _replace_quantizers(student, full_range=full_range)
    return student.eval()


def _image_readers(module: nn.Module, image: Tensor) -> list[str]:
    """NNCF's names of the convolutions that read the image itself."""
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given[0].data_ptr() == image.data_ptr():
                found.append(f"{name.replace('.', '/')}/conv2d/0")

        return hook

    convolutions = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    handles = [part.register_forward_pre_hook(note(name)) for name, part in convolutions]
    try:
        module(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _replace_quantizers(student: nn.Module, *, full_range: bool) -> None:
    from nncf.torch.function_hook.wrapper import get_hook_storage
    from nncf.torch.quantization.layers import BaseQuantizer

    storage = get_hook_storage(student)
    for name, quantizer in list(storage.named_hooks()):
        if not isinstance(quantizer, BaseQuantizer):
            continue
        low, high, step, zero = quantizer.get_parameters_for_torch_fq()
        half = quantizer.per_channel and not full_range  # weights alone have channels
        if half:  # in PyTorch, NNCF does not do so itself
            low, high, step = low // _HALF, high // _HALF, step * high / (high // _HALF)
        axis = int(np.argmax(quantizer.scale_shape)) if quantizer.per_channel else None
        storage.set_submodule(name, LearnedRange(low, high, step, zero, axis=axis))


def ranges(student: nn.Module) -> Iterator[LearnedRange]:
    """The ranges of a fake-quantised model."""
    return (part for part in student.modules() if isinstance(part, LearnedRange))


def plain_state(student: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    """The weights of a fake-quantised model by the names that they have in the model it was made of."""
    trained = student.state_dict()
    return {name: trained[name] for name in module.state_dict()}
