"""The split form of attention: the same function, and only where it is plain attention."""

import numpy as np
import onnxruntime
import pytest
import torch
from timm import create_model
from timm.models.vision_transformer import Attention
from torch import nn

from edgemim.export.attention_form import SplitAttention, projection_part, split_attentions
from edgemim.export.onnx import export_onnx


def vit(heads: int, **options) -> nn.Module:
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=heads, **options).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias"):
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("heads", [3, 4])  # 16 channels a head, whose root is a power of two, and 12, whose is not
def test_outputs_are_those_of_timm(heads: int) -> None:
    model = vit(heads)
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(split_attentions(model)(images), model(images), atol=1e-5)
    assert all(type(block.attn) is Attention for block in model.blocks)  # the original stays


def test_no_bit_is_lost_where_the_scale_is_a_power_of_two() -> None:
    attention = vit(3).blocks[0].attn
    found = SplitAttention(attention)
    assert attention.scale == 0.25
    assert torch.equal(found.query.weight * 4, attention.qkv.weight[:48])
    assert torch.equal(found.value.bias, attention.qkv.bias[96:])


def test_a_layer_without_bias_gets_one_of_zeros() -> None:
    part = projection_part(nn.Linear(4, 12, bias=False), 1)
    assert part.bias.tolist() == [0.0] * 4


def test_attention_with_norms_of_its_own_stays() -> None:
    model = vit(3, qk_norm=True)
    assert type(split_attentions(model).blocks[0].attn) is Attention


def test_a_mask_is_refused() -> None:
    attention = split_attentions(vit(3)).blocks[0].attn
    with pytest.raises(ValueError, match="no mask"):
        attention(torch.zeros(1, 5, 48), is_causal=True)


def test_its_graph_takes_any_batch(tmp_path) -> None:
    model = vit(3)
    export_onnx(split_attentions(model), torch.randn(2, 3, 64, 64), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 4):
        images = torch.randn(batch, 3, 64, 64)
        with torch.inference_mode():
            expected = model(images).numpy()
        assert np.allclose(session.run(None, {"images": images.numpy()})[0], expected, atol=1e-5)
