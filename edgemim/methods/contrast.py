"""Parts of contrastive learning that see more than one image: heads with batch norm, and the loss over all processes.

An Empirical Study of Training Self-Supervised Vision Transformers (MoCo-v3), arXiv 2104.02057, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.training.precision import full_precision


def mlp_head(layers: int, width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear layers without bias, each with batch norm and, but for the last, ReLU; the last norm has no weights."""
    parts: list[nn.Module] = []
    for number in range(1, layers + 1):
        last = number == layers
        parts.append(nn.Linear(width if number == 1 else hidden, out if last else hidden, bias=False))
        parts.append(GlobalBatchNorm(out if last else hidden, affine=not last))
        if not last:
            parts.append(nn.ReLU(inplace=True))
    return nn.Sequential(*parts)


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are those of the images of all processes; with one process, torch's own.

    torch's SyncBatchNorm does the same on a GPU and refuses a CPU.
    """

    def forward(self, input: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """Normalise over the batch; gradients flow through every process's part of the statistics."""
        if not self.training or processes() == 1:
            return super().forward(input)
        x, count = input.float(), len(input) * processes()
        mean = sum_over_processes(x.sum(0)) / count
        variance = sum_over_processes((x - mean).square().sum(0)) / count
        self._remember(mean, variance * count / (count - 1))
        x = (x - mean) * (variance + self.eps).rsqrt()
        return (x if self.weight is None else x * self.weight + self.bias).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def contrast(
    queries: Float[Tensor, "b d"], keys: Float[Tensor, "b d"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE of each query against the keys of all processes: 2 t CE(q k^T / t), q and k of unit length, its own key
    being the right one; and the share of queries whose nearest key that is."""
    with full_precision(queries.device):
        q, k = F.normalize(queries.float(), dim=1), gather_from_processes(F.normalize(keys.float(), dim=1))
        own = torch.arange(len(q), device=q.device) + rank() * len(q)
        logits = q @ k.T / temperature
        loss = 2 * temperature * F.cross_entropy(logits, own)
    return loss, (logits.detach().argmax(1) == own).float().mean()


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if processes() > 1 else 0


@torch.no_grad()
def gather_from_processes(x: Float[Tensor, "b d"]) -> Float[Tensor, "all d"]:
    """The rows of every process, in the order of their numbers and without gradient; each has as many."""
    if processes() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(processes())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum over processes, with the gradient of all of their losses."""
    return _SumOverProcesses.apply(x)  # pyright: ignore[reportReturnType]


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone()
        dist.all_reduce(total)
        return total
