"""A fine-tuned run of the same function whose attention INT8 ruins: what real networks do with single channels, overdone."""

from __future__ import annotations

import shutil
from pathlib import Path


def ruin_attention(run: Path, target: Path, *, factor: float = 512.0, channels: int = 8) -> Path:
    """Copy a run; in each head multiply so many channels of the queries and divide those of the keys.

    Their products stay as they are (bit for bit, by powers of two), but one range must now hold small and huge queries, and
    no norm and no weight stands between where smoothing could help.
    """
    import torch

    from edgemim.models.weights import save_model
    from edgemim.tasks import load_task

    shutil.copytree(run, target)
    task = load_task(target)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in task.model.blocks:
            attention = block.attn
            queries = attention.num_heads * attention.head_dim
            for head in range(attention.num_heads):
                for channel in torch.randperm(attention.head_dim, generator=generator)[:channels].tolist():
                    row = head * attention.head_dim + channel
                    for part in (attention.qkv.weight, attention.qkv.bias):
                        part[row] *= factor
                        part[queries + row] /= factor
    save_model(target / "model", task.model.state_dict(), task.facts())
    return target
