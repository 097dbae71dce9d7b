"""What autograd keeps between forward and backward, in bytes, as training with fused attention and bfloat16 would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

_LOW = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.einsum, Tensor.matmul}
_LOW |= {Tensor.__matmul__, Tensor.bmm}
_HIGH = {F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.normalize, F.cosine_similarity, F.cross_entropy}
_HIGH |= {F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.log_softmax, torch.log_softmax}


class SavedBytes:
    """Bytes of all storages that autograd saves while it is entered, each once; the given parameters are not counted.

    A storage counts as a whole, also where a view of it is saved: that is what stays in memory.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._known = {_address(parameter) for parameter in parameters}
        self._kept: dict[int, torch.UntypedStorage] = {}
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(storage.nbytes() for storage in self._kept.values())

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hooks.__exit__(kind, error, at)

    def _pack(self, tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in self._known:
            # Held on to, so that no later storage gets its address.
            self._kept[address] = tensor.untyped_storage()
        return tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Autocast(TorchFunctionMode):
    """Attention as one fused kernel, and with `enabled` torch's autocast to bfloat16 in outline.

    torch's own autocast leaves tensors without content alone. Products run in bfloat16, norms and losses in float32,
    everything else in what it is given; a parameter's copy in bfloat16 is made once.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self._enabled = enabled
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Without gradient nothing is kept: targets and teachers run as they are.
        if self._enabled and torch.is_grad_enabled() and (func in _LOW or func in _HIGH):
            dtype = torch.bfloat16 if func in _LOW else torch.float32
            args = tuple(self._cast(value, dtype) for value in args)
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
        if func is F.scaled_dot_product_attention and torch.is_grad_enabled():
            return _FusedAttention.apply(*args[:3], args[3] if len(args) > 3 else kwargs.get("attn_mask"))
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if id(value) not in self._copies:
            self._copies[id(value)] = (value, value.to(dtype))
        return self._copies[id(value)][1]


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: queries, keys, values, a bias, the output, one number a row. It computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, bias, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("memory is counted in the forward alone")
