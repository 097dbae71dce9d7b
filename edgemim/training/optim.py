"""AdamW and SGD over timm's parameter groups: no decay of vectors, and layer-wise learning rates for fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn


def build_adamw(
    model: nn.Module,
    *,
    weight_decay: float,
    betas: tuple[float, float],
    layer_decay: float | None = None,
    no_decay: Sequence[str] = (),
    decay_vectors: bool = False,
) -> torch.optim.AdamW:
    """Fused AdamW whose groups carry `lr_scale`; the loop sets each group's rate to rate * lr_scale.

    Args:
        model: its trainable parameters are optimised.
        weight_decay: of matrices; vectors, biases and names in `no_decay` have none.
        betas: Adam's two momenta.
        layer_decay: with it, timm's layer groups: a layer's rate is decay ** (layers above it).
        no_decay: names of parameters that are not decayed.
        decay_vectors: without `layer_decay`, decay vectors and biases, too.
    """
    groups = _groups(model, weight_decay, layer_decay, no_decay, decay_vectors)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def build_sgd(
    model: nn.Module,
    *,
    weight_decay: float,
    momentum: float,
    layer_decay: float | None = None,
    no_decay: Sequence[str] = (),
) -> torch.optim.SGD:
    """Fused SGD with Nesterov's momentum, over groups as `build_adamw` makes them."""
    groups = _groups(model, weight_decay, layer_decay, no_decay, decay_vectors=False)
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum > 0:
        # From zero the first step is the same as from nothing; but torch would leave a buffer that it makes in a first step
        # which is skipped (found_inf) uninitialised, and go on with that.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None, no_decay: Sequence[str], decay_vectors: bool
) -> list[dict[str, Any]]:
    if decay_vectors and layer_decay is None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in trained if name not in no_decay], "weight_decay": weight_decay},
            {"params": [p for name, p in trained if name in no_decay], "weight_decay": 0.0},
        ]
    elif layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=no_decay)
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=no_decay, layer_decay=layer_decay)
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group.setdefault("lr_scale", 1.0)
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients, as a scalar on the device (no host synchronisation)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, `PARAMETER|MOMENT`, for safetensors."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{moment}": value
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put state saved by `optimizer_tensors` back. Raises KeyError on a name that the model lacks."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, moment = key.rpartition("|")
        parameter = parameters[name]
        # Fused kernels want the step count on the parameter's device; moments share its dtype.
        optimizer.state[parameter][moment] = value.to(parameter.device)
