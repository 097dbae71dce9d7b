"""What needs a CUDA device: bf16 training, exact-enough resume, and the device's masks equal to the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import edgemim  # noqa: E402
from edgemim.methods.masking import RandomMasking  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no usable CUDA device"),
]


def settings(data: Path, out: Path, **more: object) -> edgemim.PretrainConfig:
    """A small pre-training run on the GPU."""
    base = {"data": data, "out": out, "encoder": "vit_nano", "batch_size": 32, "epochs": 4, "warmup_epochs": 1}
    return edgemim.PretrainConfig.model_validate({**base, "base_lr": 4e-3, "workers": 0, "device": "cuda", **more})


def test_masks_do_not_depend_on_the_device() -> None:
    keys = torch.randint(0, 2**62, (64,), generator=torch.Generator().manual_seed(0))
    on_cpu, on_gpu = (RandomMasking(ratio=0.75)(keys.to(device), 196) for device in ("cpu", "cuda"))
    assert torch.equal(on_cpu.masked, on_gpu.masked.cpu())
    assert torch.equal(on_cpu.visible, on_gpu.visible.cpu())


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_pretraining_learns(photos: Path, tmp_path: Path, compiled: bool) -> None:
    results = edgemim.pretrain(settings(photos, tmp_path / "run", compile=compiled, log_every=1))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) >= results["steps"]
    assert results["last_metrics"]["loss"] < 1.2
    assert results["nonfinite_steps"] == 0


def test_gpu_and_cpu_agree_in_fp32(photos: Path, tmp_path: Path) -> None:
    losses = [
        edgemim.pretrain(settings(photos, tmp_path / device, device=device, precision="fp32"))["last_metrics"]["loss"]
        for device in ("cpu", "cuda")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
