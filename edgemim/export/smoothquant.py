"""SmoothQuant folded into a PyTorch model: outlier channels move from activations into weights, the function stays."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemim.errors import UserError

_FLOOR = 1e-5


def smooth(module: nn.Module, batches: Iterable[np.ndarray], *, alpha: float = 0.5) -> nn.Module:
    """A copy of a transformer whose LayerNorms are divided, and the linear layers behind them multiplied, channel by
    channel, so that both quantise well (SmoothQuant, arXiv 2211.10438, eq. 4: s = max|x|^alpha / max|w|^(1 - alpha)).

    Only pairs where every reader of the norm is known are touched: `norm1` with `attn.qkv`, `norm2` with `mlp.fc1` of
    timm's blocks. Hiera's blocks that change width read `norm1` twice; there `proj` takes part.

    Args:
        module: a model of normalised images [b, 3, h, w], in evaluation mode on the CPU; not changed.
        batches: float32 arrays of such images, to take the largest activations from.
        alpha: 0 leaves activations alone, 1 makes them all alike.

    Raises:
        UserError: without images, with activations that are not finite, or if the model has no such pairs.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"smoothing alpha is {alpha}; give a number from 0 to 1")
    smoothed = copy.deepcopy(module).eval()
    pairs = list(_pairs(smoothed))
    if not pairs:
        raise UserError(
            f"{type(module).__name__} has no LayerNorm that only linear layers read, so nothing can be smoothed"
        )
    largest = _largest(smoothed, [norm for norm, _ in pairs], batches)
    for (norm, linears), seen in zip(pairs, largest, strict=True):
        _fold(norm, linears, seen, alpha)
    return smoothed


def _pairs(module: nn.Module) -> Iterator[tuple[nn.LayerNorm, list[nn.Linear]]]:
    """LayerNorms and all the linear layers that read them."""
    for block in module.modules():
        attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
        first, second = getattr(block, "norm1", None), getattr(block, "norm2", None)
        readers: list[Any] = [getattr(attention, "qkv", None)]
        if getattr(block, "do_expand", False):
            readers.append(getattr(block, "proj", None))
        if isinstance(first, nn.LayerNorm) and all(isinstance(reader, nn.Linear) for reader in readers):
            yield first, readers
        if isinstance(second, nn.LayerNorm) and isinstance(fc1 := getattr(mlp, "fc1", None), nn.Linear):
            yield second, [fc1]


def _largest(module: nn.Module, norms: list[nn.LayerNorm], batches: Iterable[np.ndarray]) -> list[Tensor]:
    """The largest magnitude of each channel behind each norm, over all batches: a vector of its width a norm."""
    found: dict[nn.Module, Tensor] = {}

    def note(norm: nn.Module, _: Any, output: Tensor) -> None:
        largest = output.detach().abs().flatten(0, -2).amax(0)
        found[norm] = torch.maximum(found[norm], largest) if norm in found else largest

    handles = [norm.register_forward_hook(note) for norm in norms]
    try:
        with torch.no_grad():
            for batch in batches:
                module(torch.from_numpy(batch))
    finally:
        for handle in handles:
            handle.remove()
    if len(found) < len(norms):
        raise UserError("smoothing needs images to take activations from; give --data DIR with images")
    if not all(bool(torch.isfinite(largest).all()) for largest in found.values()):
        raise UserError("the model's activations are not finite, so it cannot be smoothed; check its weights")
    return [found[norm] for norm in norms]


@torch.no_grad()
def _fold(norm: nn.LayerNorm, linears: list[nn.Linear], seen: Tensor, alpha: float) -> None:
    weights = torch.stack([linear.weight.abs().amax(0) for linear in linears]).amax(0)
    scale = seen.clamp(min=_FLOOR) ** alpha / weights.clamp(min=_FLOOR) ** (1 - alpha)
    norm.weight.div_(scale)
    if norm.bias is not None:
        norm.bias.div_(scale)
    for linear in linears:
        linear.weight.mul_(scale)
