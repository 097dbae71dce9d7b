"""Small encoders, batches and teachers for tests of the training wing; importing it keeps torch on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from edgemim.methods.masking import RandomMasking  # noqa: E402
from edgemim.models.encoder import Encoder, TokenMask  # noqa: E402
from edgemim.models.normalization import Normalization  # noqa: E402
from edgemim.models.sizes import VitConfig  # noqa: E402

torch.set_num_threads(1)

NANO = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=32)
NORMALIZATION = Normalization((0.48, 0.46, 0.41), (0.23, 0.22, 0.225))


def nano_encoder(config: VitConfig = NANO, seed: int = 0) -> Encoder:
    """A small encoder whose every weight is random: fresh ones hide faults behind zero biases and equal norms."""
    torch.manual_seed(seed)
    encoder = Encoder(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return encoder


def pixels(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Random uint8 images [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def keys_of(count: int, seed: int = 0) -> Tensor:
    """Random 62-bit keys, int64 [count]."""
    return torch.randint(0, 2**62, (count,), generator=torch.Generator().manual_seed(1000 + seed))


def mask_of(count: int, tokens: int = 16, ratio: float = 0.75, seed: int = 0) -> TokenMask:
    """A random mask of `count` rows."""
    return RandomMasking(ratio=ratio)(keys_of(count, seed), tokens)


@dataclass
class TinyBatch:
    """What the loop needs of a batch, without a data set."""

    images: Tensor
    labels: Tensor
    keys: Tensor
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def to(self, device: torch.device) -> TinyBatch:
        """The batch on another device."""
        return TinyBatch(self.images.to(device), self.labels.to(device), self.keys.to(device), self.skipped)


def tiny_batches(start: int, stop: int, *, size: int = 32, count: int = 8, classes: int = 4) -> Iterator[TinyBatch]:
    """Batches number `start` to `stop`, each a function of its number."""
    for number in range(start, stop):
        labels = torch.from_numpy(np.random.default_rng(number).integers(0, classes, count))
        yield TinyBatch(pixels(count, size, seed=number), labels, keys_of(count, seed=number))


class GridTeacher(torch.nn.Module):
    """A frozen convolution that gives one feature vector a patch: what methods need of a teacher, without timm."""

    def __init__(self, patch_size: int, side: int, channels: int = 10) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.grid, self.channels = (side, side), channels
        self.project = torch.nn.Conv2d(3, channels, patch_size, patch_size)
        self.requires_grad_(False).eval()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.seen = images
        return self.project(images).flatten(2).transpose(1, 2).contiguous()
