"""Smoothing keeps the function and takes away what ruins INT8."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from edgemim.errors import UserError
from edgemim.export.onnx import export_onnx
from edgemim.export.onnxruntime import quantize_dynamic_onnx
from edgemim.export.smoothquant import smooth


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=20).eval()
    nn.init.normal_(model.head.weight, std=0.3)
    return model


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(12, 3, 32, 32)).astype(np.float32)


def inject_outliers(model: VisionTransformer, factor: float) -> None:
    """Scale four channels of each norm and divide the weights that read them: the same function, hard to quantise."""
    for block in model.blocks:
        for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            with torch.no_grad():
                norm.weight[:4] *= factor
                norm.bias[:4] *= factor
                linear.weight[:, :4] /= factor


def answers(module: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


def dynamic_int8(module: nn.Module, images: np.ndarray, folder: Path) -> np.ndarray:
    export_onnx(module, torch.from_numpy(images[:2]), folder / "model.onnx")
    quantize_dynamic_onnx(folder / "model.onnx", folder / "int8.onnx", full_range=True)
    session = onnxruntime.InferenceSession(folder / "int8.onnx", providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": image[None]})[0] for image in images])


def worst_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def test_outliers_no_longer_ruin_int8(model, images, tmp_path):
    inject_outliers(model, 300.0)
    truth = answers(model, images)
    (tmp_path / "raw").mkdir()
    (tmp_path / "smooth").mkdir()
    ruined = worst_cosine(truth, dynamic_int8(model, images, tmp_path / "raw"))
    smoothed = smooth(model, [images])
    np.testing.assert_allclose(answers(smoothed, images), truth, rtol=1e-4, atol=1e-4)
    kept = worst_cosine(truth, dynamic_int8(smoothed, images, tmp_path / "smooth"))
    assert ruined < 0.97 < 0.999 < kept


def test_alpha_one_makes_all_channels_alike(model, images):
    inject_outliers(model, 50.0)
    smoothed = smooth(model, [images[:6], images[6:]], alpha=1.0)
    seen = {}
    smoothed.blocks[1].norm2.register_forward_hook(
        lambda *call: seen.update(largest=call[2].abs().flatten(0, 1).amax(0))
    )
    answers(smoothed, images)
    np.testing.assert_allclose(seen["largest"].numpy(), 1.0, rtol=1e-3)


def test_the_model_given_is_not_changed(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smooth(model, [images])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["hiera_tiny_224", "beit_base_patch16_224", "deit_tiny_patch16_224"])
def test_every_family_keeps_its_function(name):
    torch.manual_seed(0)
    sizes = {
        "hiera_tiny_224": {"img_size": (64, 64), "embed_dim": 16, "stages": (1, 1, 2, 1)},
        "beit_base_patch16_224": {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3},
        "deit_tiny_patch16_224": {"img_size": 32, "embed_dim": 48, "depth": 2},
    }[name]
    module = timm.create_model(name, num_classes=7, **sizes).eval()
    side = 64 if "hiera" in name else 32
    images = np.random.default_rng(1).normal(size=(2, 3, side, side)).astype(np.float32)
    smoothed = smooth(module, [images])
    np.testing.assert_allclose(answers(smoothed, images), answers(module, images), rtol=1e-4, atol=1e-5)
    changed = [
        name
        for name, value in smoothed.state_dict().items()
        if not torch.equal(value, module.state_dict()[name]) and name.endswith("norm1.weight")
    ]
    assert len(changed) == sum(name.endswith("norm1.weight") for name in module.state_dict())


def test_what_cannot_be_smoothed_is_said(model, images):
    with pytest.raises(UserError, match="nothing can be smoothed"):
        smooth(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), [images])
    with pytest.raises(UserError, match="needs images"):
        smooth(model, [])
    with pytest.raises(UserError, match="not finite"):
        smooth(model, [images * np.inf])
    with pytest.raises(UserError, match="alpha is 2"):
        smooth(model, [images], alpha=2.0)
