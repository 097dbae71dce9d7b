"""Switching autocast off, also where there is none."""

from __future__ import annotations

import torch

from edgemim.training.precision import full_precision


def test_products_are_float32_inside_autocast() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x.device):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_a_device_without_arithmetic_has_nothing_to_switch_off() -> None:
    x = torch.ones(2, 2, device="meta")
    with full_precision(x.device):
        assert (x @ x).dtype == torch.float32
