"""Images per second of pre-training, edgemim's loop beside a plain PyTorch one, in interleaved blocks of one run.

CPU:  python benchmarks/pretrain_throughput.py --batch-size 32
GPU:  python benchmarks/pretrain_throughput.py --batch-size 2048 --compile --teacher vit_base_patch16_224 --data DIR

Each case is warmed up, then all cases take turns, so that what else the machine does hits all alike; the figure is the
median over blocks, the ratio the median of the ratios to the plain loop block by block. Without --data the images are
random bytes on the device (arithmetic does not depend on them); with it each case is also timed behind the loader.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from edgemim.commands.pretrain import PretrainConfig, build, build_teacher
from edgemim.config import Config
from edgemim.data.folders import scan_folder
from edgemim.data.loader import Batch, build_loader
from edgemim.edge.machine import describe
from edgemim.methods import FeatureDistillConfig, MaeConfig
from edgemim.methods.decoders import TransformerDecoderConfig
from edgemim.models.sizes import SIZES, VitConfig
from edgemim.teachers import TimmTeacher
from edgemim.training.distributed import World, pick_device
from edgemim.training.loop import Trainer
from edgemim.training.meter import Meter
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan

Step = Callable[[], None]


class ThroughputConfig(Config):
    """Measure pre-training throughput."""

    encoder: str = "vit_tiny"
    """A named size."""
    batch_size: int = 32
    """Images of a step."""
    decoder_width: int = 192
    """Width of the decoder's one block (192 is what shared measurements used; the study's is 96)."""
    steps: int = 4
    """Steps of one block."""
    blocks: int = 5
    """Blocks of each case."""
    device: str = "auto"
    """auto, cpu or cuda."""
    compile: bool = False
    """Also time the compiled model."""
    teacher: str = ""
    """Also time MAE with feature distillation from this timm model (random weights: speed does not depend on them)."""
    data: Path | None = None
    """Also time each case behind the loader, on this folder of images."""
    workers: int = 0
    """Processes of the loader."""
    out: Path | None = None
    """File for the JSON."""


class PlainMae(nn.Module):
    """A masked autoencoder as one would first write it: embed all patches, shuffle, encode, unshuffle, decode."""

    def __init__(self, size: VitConfig, decoder_width: int) -> None:
        super().__init__()
        self.patch, tokens = size.patch_size, size.tokens
        self.embed = nn.Conv2d(3, size.width, size.patch_size, size.patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, size.width))
        self.positions = nn.Parameter(torch.randn(1, tokens, size.width) * 0.02, requires_grad=False)
        self.blocks = nn.Sequential(*(Block(size.width, size.heads, qkv_bias=True) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(size.width)
        self.to_decoder = nn.Linear(size.width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_positions = nn.Parameter(torch.randn(1, tokens + 1, decoder_width) * 0.02, requires_grad=False)
        self.decoder = nn.Sequential(Block(decoder_width, 6, qkv_bias=True), nn.LayerNorm(decoder_width))
        self.head = nn.Linear(decoder_width, 3 * size.patch_size**2)

    def forward(self, images: Tensor) -> Tensor:
        """Loss of normalised images."""
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        b, n, d = x.shape
        kept = n // 4
        shuffle = torch.rand(b, n, device=x.device).argsort(1)
        restore = shuffle.argsort(1)
        x = x.gather(1, shuffle[:, :kept, None].expand(-1, -1, d))
        x = self.norm(self.blocks(torch.cat([self.cls.expand(b, -1, -1), x], 1)))
        x = self.to_decoder(x)
        full = torch.cat([x[:, 1:], self.mask_token.expand(b, n - kept, -1)], 1)
        full = full.gather(1, restore[:, :, None].expand(-1, -1, full.shape[-1]))
        y = self.head(self.decoder(torch.cat([x[:, :1], full], 1) + self.decoder_positions))[:, 1:]
        p, side = self.patch, images.shape[-1] // self.patch
        target = images.reshape(b, 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(b, n, -1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        mask = torch.ones(b, n, device=x.device)
        mask[:, :kept] = 0
        mask = mask.gather(1, restore)
        return (((y - target) ** 2).mean(-1) * mask).sum() / mask.sum()


def plain_case(config: ThroughputConfig, device: torch.device) -> Step:
    """A step of the plain loop, on normalised images that are already on the device."""
    size = encoder_size(config)
    model = PlainMae(size, config.decoder_width).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, betas=(0.9, 0.95))
    images = torch.randn(config.batch_size, 3, size.image_size, size.image_size, device=device)
    bf16 = device.type == "cuda"

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = model(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def own_case(config: ThroughputConfig, device: torch.device, *, compiled: bool, teacher: bool, loaded: bool) -> Step:
    """A step of edgemim's own loop: the same code that `edgemim pretrain` runs."""
    size = encoder_size(config)
    decoder = TransformerDecoderConfig(width=config.decoder_width, heads=6)
    settings = PretrainConfig(
        encoder=size,
        method=FeatureDistillConfig(mask_ratio=0.75, pixel_decoder=decoder) if teacher else MaeConfig(decoder=decoder),
        teacher=TimmTeacher(model=config.teacher, pretrained=False) if teacher else None,
        batch_size=config.batch_size,
        device=device.type,
        compile=compiled,
    )
    model = build(settings, device, build_teacher(settings, device))
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    plan = Plan(steps_per_epoch=10**6, total_steps=10**6, warmup_steps=0)
    folder = Path("unused")
    trainer = Trainer(model, optimizer, settings, plan, World(0, 1, device), folder, data_fingerprint="", label="")
    wrapped, meter = trainer.wrap().train(), Meter(device)
    batches = iter(loaded_batches(config, size)) if loaded else synthetic_batches(config, size, device)
    return lambda: trainer.step(wrapped, batches, 0, meter)


def encoder_size(config: ThroughputConfig) -> VitConfig:
    """The named size."""
    size = SIZES[config.encoder]
    assert isinstance(size, VitConfig)
    return size


def synthetic_batches(config: ThroughputConfig, size: VitConfig, device: torch.device) -> Iterator[Batch]:
    """The same random batch for ever, on the device."""
    shape = (config.batch_size, 3, size.image_size, size.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    numbers = torch.arange(config.batch_size, device=device)
    while True:
        yield Batch(images, numbers, numbers, numbers)


def loaded_batches(config: ThroughputConfig, size: VitConfig) -> Any:
    """Batches through the loader, as in a real run."""
    assert config.data is not None
    transform = PretrainConfig().transform.build(size.image_size)
    return build_loader(
        scan_folder(config.data),
        transform,
        batch_size=config.batch_size,
        seed=0,
        total_steps=10**6,
        workers=config.workers,
        pin_memory=True,
    )


def cases(config: ThroughputConfig, device: torch.device) -> dict[str, Step]:
    """All cases that were asked for, the plain loop first."""
    found = {"plain PyTorch": plain_case(config, device)}
    for teacher in (False, True) if config.teacher else (False,):
        for compiled in (False, True) if config.compile else (False,):
            for loaded in (False, True) if config.data else (False,):
                name = f"edgemim {'MAE + ' + config.teacher if teacher else 'MAE'}"
                name += (", compiled" if compiled else ", eager") + (", with loading" if loaded else "")
                found[name] = own_case(config, device, compiled=compiled, teacher=teacher, loaded=loaded)
    return found


def main(config: ThroughputConfig) -> None:
    """Measure, print a table and write the JSON."""
    device = pick_device(config.device)
    steps = cases(config, device)
    for name, step in steps.items():
        started = time.perf_counter()
        run_block(step, 3, device)
        print(f"warm-up of {name}: {time.perf_counter() - started:.1f} s", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(config.blocks):
        for name, step in steps.items():
            rates[name].append(config.steps * config.batch_size / run_block(step, config.steps, device))
    rows = [row(name, values, rates["plain PyTorch"]) for name, values in rates.items()]
    for line in rows:
        print(f"{line['case']:<55} {line['images_per_s']:>9.1f} images/s   {line['ratio_to_plain']:.2f} x plain")
    result = {"config": config.model_dump(mode="json"), "machine": describe(), "cases": rows}
    result["torch"] = {"version": torch.__version__, "threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        result["torch"]["gpu"] = torch.cuda.get_device_name()
    if config.out is not None:
        config.out.write_text(json.dumps(result, indent=2) + "\n")


def row(name: str, values: list[float], plain: list[float]) -> dict[str, Any]:
    """Median rate of a case and its median ratio to the plain loop."""
    ratios = [own / other for own, other in zip(values, plain, strict=True)]
    return {
        "case": name,
        "images_per_s": statistics.median(values),
        "blocks": values,
        "ratio_to_plain": statistics.median(ratios),
    }


def run_block(step: Step, count: int, device: torch.device) -> float:
    """Seconds that `count` steps take, the device's work included."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(tyro.cli(ThroughputConfig))
