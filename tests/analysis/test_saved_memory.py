"""Bytes that autograd keeps, counted by hand on small graphs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgemim.analysis.saved_memory import Autocast, SavedBytes

META = torch.device("meta")


def test_a_linear_layer_keeps_its_input_and_not_its_weights() -> None:
    layer = nn.Linear(8, 4, device=META)
    x = torch.empty(10, 8, device=META)
    with SavedBytes(layer.parameters()) as saved:
        layer(x)
    assert saved.total == 10 * 8 * 4


def test_a_tensor_that_two_operations_keep_counts_once() -> None:
    x = torch.empty(100, device=META, requires_grad=True)
    with SavedBytes([]) as saved:
        y = x.exp()  # keeps its output
        _ = y.sin(), y.cos(), y[:50].square()  # keep their input; a view keeps the whole
    assert saved.total == 100 * 4


def test_nothing_is_kept_without_gradient() -> None:
    with SavedBytes([]) as saved, torch.no_grad():
        torch.empty(100, device=META, requires_grad=True).exp()
    assert saved.total == 0


@pytest.mark.parametrize("bias", [False, True])
def test_attention_keeps_what_a_fused_kernel_does(bias: bool) -> None:
    q, k, v = (torch.empty(2, 3, 50, 16, device=META, requires_grad=True) for _ in range(3))
    mask = torch.empty(3, 50, 50, device=META) if bias else None
    with SavedBytes([q, k, v]) as saved, Autocast(False):  # pyright: ignore[reportArgumentType]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert out.shape == q.shape
    # The output and a number for each row; not the 50 x 50 weights, but a bias.
    assert saved.total == 2 * 3 * 50 * (16 + 1) * 4 + bias * 3 * 50 * 50 * 4


def test_products_in_bfloat16_and_norms_in_float32() -> None:
    layer, x = nn.Linear(8, 8, device=META), torch.empty(10, 8, device=META)
    with Autocast(True):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert (x @ x.T).dtype == torch.bfloat16
        assert F.layer_norm(y, (8,)).dtype == torch.float32
        assert F.gelu(y).dtype == torch.bfloat16
        with torch.no_grad():
            assert layer(x).dtype == torch.float32  # targets stay as they are: they keep nothing
    with SavedBytes(layer.parameters()) as saved, Autocast(True):
        layer(layer(x))
    # Two inputs, of which the second was made in bfloat16, and one copy of the weight for both.
    assert saved.total == 2 * 10 * 8 * 2 + 8 * 8 * 2
