"""Heads and loss of contrastive learning: alone, and over two processes as over one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_training import NANO  # noqa: F401 (one thread)
from torch import nn

from edgemim.methods.contrast import GlobalBatchNorm, contrast, gather_from_processes, mlp_head


def test_heads_have_the_published_layers() -> None:
    projector, predictor = mlp_head(3, 24, 64, 16), mlp_head(2, 16, 64, 16)
    kinds = [type(part) for part in projector]
    assert kinds == [
        nn.Linear,
        GlobalBatchNorm,
        nn.ReLU,
        nn.Linear,
        GlobalBatchNorm,
        nn.ReLU,
        nn.Linear,
        GlobalBatchNorm,
    ]
    shapes = [tuple(part.weight.shape) for part in (*projector, *predictor) if isinstance(part, nn.Linear)]
    assert shapes == [(64, 24), (64, 64), (16, 64), (64, 16), (16, 64)]
    assert all(part.bias is None for part in (*projector, *predictor) if isinstance(part, nn.Linear))
    assert [part.affine for part in projector if isinstance(part, nn.BatchNorm1d)] == [True, True, False]
    out = projector(torch.randn(50, 24))
    torch.testing.assert_close(out.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(16), atol=1e-3, rtol=0)


def test_the_loss_by_hand() -> None:
    q, k = torch.randn(5, 8), torch.randn(5, 8)
    expected, hits = 0.0, 0
    for i in range(5):
        cosines = torch.stack([q[i] @ k[j] / (q[i].norm() * k[j].norm()) for j in range(5)])
        share = (cosines / 0.2).exp()
        expected -= float((share[i] / share.sum()).log()) / 5
        hits += int(cosines.argmax() == i)
    loss, top1 = contrast(q, k, 0.2)
    assert float(loss) == pytest.approx(2 * 0.2 * expected, rel=1e-5)
    assert float(top1) == pytest.approx(hits / 5)


def test_the_loss_is_computed_in_full_precision_under_autocast() -> None:
    q, k = torch.randn(6, 8), torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrast(q, k, 0.2)[0], contrast(q, k, 0.2)[0].float())
        found = contrast(q, k, 0.2)[0]
    assert torch.equal(found, contrast(q, k, 0.2)[0])


def test_alone_nothing_is_gathered() -> None:
    x = torch.randn(3, 4)
    assert gather_from_processes(x) is x
    norm, reference = GlobalBatchNorm(4), nn.BatchNorm1d(4)
    assert torch.equal(norm(x), reference(x))
    assert torch.equal(norm.running_var, reference.running_var)  # pyright: ignore[reportArgumentType]
    assert torch.equal(norm.eval()(x), reference.eval()(x))


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """Each with half of the batch: the same loss, gradients (averaged, as DDP does) and running statistics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = textwrap.dedent(
        """
        import torch, torch.distributed as dist
        torch.set_num_threads(1)
        from edgemim.methods.contrast import contrast, mlp_head
        from edgemim.training.distributed import open_world

        def losses(rows):
            torch.manual_seed(0)
            head, predictor = mlp_head(3, 12, 32, 8), mlp_head(2, 8, 32, 8)
            x, keys = torch.randn(8, 12, dtype=torch.float32), torch.randn(8, 8)
            x = x[rows].requires_grad_()
            loss, top1 = contrast(predictor(head(x)), keys[rows], 0.2)
            loss.backward()
            parts = [*head.parameters(), *predictor.parameters()]
            return loss.detach(), top1, [p.grad for p in parts], x.grad, [*head.buffers()]

        whole = losses(slice(None))
        with open_world("cpu") as world:
            rows = slice(4 * world.rank, 4 * world.rank + 4)
            loss, top1, gradients, inputs, buffers = losses(rows)
            for mine, theirs in zip([loss, top1, *gradients], [whole[0], whole[1], *whole[2]], strict=True):
                torch.testing.assert_close(world.mean_(mine), theirs, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(inputs / 2, whole[3][rows], atol=1e-6, rtol=1e-4)
            for mine, theirs in zip(buffers, whole[4], strict=True):
                torch.testing.assert_close(mine, theirs)
            print("as one")
        """
    )
    ranks = []
    for rank in range(2):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", program]
        ranks.append(subprocess.Popen(command, env={**os.environ, **variables}, cwd=tmp_path, **pipes))
    for process in ranks:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "as one" in out
