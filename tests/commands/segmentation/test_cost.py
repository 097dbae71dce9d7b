"""The cost of a segmentation recipe is that of the network that fine-tuning builds, layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from edgemim.commands.cost import CostConfig, compose, cost, input_shape, read_recipe  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.tasks import SegmentationTask  # noqa: E402

torch.set_num_threads(1)

RECIPE = """
task:
  name: segmentation
  crop_size: 64
  head: {channels: 16}
  inference: {short_side: 96, stride: 48}
init: scratch
encoder: vit_nano
epochs: 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def multiply_adds(task: SegmentationTask, image: Any) -> int:
    """Of all convolutions and linear layers on one image, as they run; attention's two products come on top."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += inputs[0].numel() * module.out_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.Conv2d):
            total += output.numel() * module.in_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    for module in task.modules():
        module.register_forward_hook(count)
    task.model.coarse_logits(image)
    return total


def test_every_layer_is_counted_and_the_head_apart(recipe: Path, tmp_path: Path) -> None:
    found = cost(CostConfig(recipe=recipe, classes=5, images=100, images_per_second=10, out=tmp_path / "cost"))
    task, teacher = compose(read_recipe(recipe), 5)
    assert isinstance(task, SegmentationTask) and teacher is None
    assert input_shape(read_recipe(recipe)) == (3, 64, 64)
    size = task.model.encoder.config
    products = 2 * size.depth * 65**2 * size.width  # 64 patches and the class token
    expected = 2 * (multiply_adds(task.eval(), torch.zeros(1, 3, 64, 64)) + products) / 1e9
    assert found["forward_gflop"] == pytest.approx(expected, rel=1e-6)
    encoder = sum(parameter.numel() for parameter in task.model.encoder.parameters())
    assert found["parts"]["encoder"]["parameters"] == encoder
    everything = sum(part["parameters"] for part in found["parts"].values())
    assert everything == sum(parameter.numel() for parameter in task.model.parameters())
    # Twice the forward, but nobody asks for the gradient of the pixels.
    embedding = 2 * 64 * 3 * 8 * 8 * size.width / 1e9
    assert found["training_gflop"] == pytest.approx(3 * expected - embedding, rel=1e-6)
    assert found["memory"]["fp32_mib_per_image"] > 0
    assert found["hours"] == pytest.approx(100 * 4 / 10 / 3600)


def test_it_can_be_measured(recipe: Path, tmp_path: Path) -> None:
    words = {"measure": True, "measure_seconds": 0.2, "measure_batch": 2, "device": "cpu"}
    found = cost(CostConfig.model_validate({"recipe": recipe, "out": tmp_path / "cost", **words}))
    assert found["measured"]["images_per_s"] > 0


def test_what_does_not_go_together_is_one_sentence(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("crop_size: 64", "crop_size: 60"))
    with pytest.raises(UserError, match=r"task\.crop_size 60 does not go with the encoder"):
        cost(CostConfig(recipe=recipe, out=tmp_path / "cost"))
    recipe.write_text(RECIPE.replace("channels: 16", "taps: [2, 1, 1, 1]"))
    with pytest.raises(UserError, match=r"task\.head: taps"):
        cost(CostConfig(recipe=recipe, out=tmp_path / "cost"))
