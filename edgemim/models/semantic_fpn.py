"""Semantic-FPN on the taps of an encoder: a pyramid of four levels, each brought to the finest, summed, classified.

Panoptic Feature Pyramid Networks, arXiv 1901.02446, section 3.2; the pyramid of a plain ViT (x4, x2, x1, x0.5) as in the
lightweight study's published segmentation code (arXiv 2404.12210).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pydantic
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.config import Config
from edgemim.edge.segmentation import window_starts
from edgemim.models.build import build_encoder
from edgemim.models.encoder import Encoder, Features
from edgemim.models.sizes import EncoderSize, HieraConfig
from edgemim.models.weights import bare_vit

LEVELS = 4


class SemanticFpnConfig(Config):
    """The head that turns four taps into a class for each pixel."""

    taps: tuple[int, ...] = ()
    """Four blocks, counted from 1; none: 1/3, 1/2, 2/3 and all of the depth (4, 6, 8, 12 of 12), of a hierarchical
    encoder the last block of each stage."""
    neck_scale: float = pydantic.Field(default=0.25, gt=0)
    """Channels of a pyramid level over the encoder's width."""
    channels: int = pydantic.Field(default=128, ge=1)
    """Channels of the head."""
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Share of the head's channels that are dropped in training."""

    def blocks(self, encoder: EncoderSize) -> tuple[int, ...]:
        """The tapped blocks of an encoder. Raises ValueError if these are not four ascending ones of it."""
        taps = self.taps
        if not taps:
            depth = encoder.depth
            hierarchical = isinstance(encoder, HieraConfig)
            taps = encoder.stage_ends if hierarchical else (max(1, depth // 3), depth // 2, 2 * depth // 3, depth)
        if len(taps) != LEVELS or list(taps) != sorted(taps) or taps[0] < 1 or taps[-1] > encoder.depth:
            raise ValueError(f"taps {list(taps)} must be four ascending blocks of 1 to {encoder.depth}")
        return taps


class ConvNormRelu(nn.Module):
    """3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width_out)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Same height and width."""
        return F.relu(self.bn(self.conv(x)))


def plain_pyramid(width: int, out: int) -> nn.ModuleList:
    """Levels x4, x2, x1 and x0.5 of the patch grid, of `out` channels each."""
    four = nn.Sequential(
        nn.ConvTranspose2d(width, out, 2, 2), nn.BatchNorm2d(out), nn.GELU(), nn.ConvTranspose2d(out, out, 2, 2)
    )
    two = nn.Sequential(nn.ConvTranspose2d(width, out, 2, 2))
    half = nn.Sequential(nn.Conv2d(width, out, 1), nn.MaxPool2d(2, 2))
    return nn.ModuleList([four, two, nn.Conv2d(width, out, 1), half])


class FpnHead(nn.Module):
    """Pyramid levels to logits at the finest level's size.

    A level 2^k times coarser passes max(1, k) times through (3x3 convolution, x2 enlargement), the finest through the
    convolution alone; then all are summed, and a 1x1 convolution classifies.
    """

    def __init__(self, width: int, channels: int, classes: int, coarser: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for halvings in coarser:
            parts: list[nn.Module] = []
            for step in range(max(1, halvings)):
                parts.append(ConvNormRelu(width if step == 0 else channels, channels))
                if halvings:
                    parts.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.levels.append(nn.Sequential(*parts))
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, pyramid: list[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b classes h w"]:
        """Levels, the finest first."""
        total = self.levels[0](pyramid[0])
        for level, features in zip(self.levels[1:], pyramid[1:], strict=True):
            total = total + resized(level(features), total.shape[-2:])
        return self.classify(self.dropout(total))


class SemanticFpn(nn.Module):
    """Encoder, pyramid and head: normalised images [b, 3, s, s] to logits [b, classes, s, s]."""

    def __init__(self, encoder: EncoderSize, config: SemanticFpnConfig, classes: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.taps = config.blocks(encoder)
        self.encoder = _trainable(encoder, drop_path)
        out = max(1, round(config.neck_scale * encoder.width))
        if encoder.hierarchical:
            self.pyramid = nn.ModuleList([nn.Conv2d(encoder.width_at(tap), out, 1) for tap in self.taps])
            splits = [encoder.split_at(tap) for tap in self.taps]
            coarser = tuple(int(math.log2(splits[0] // split)) for split in splits)
        else:
            self.pyramid = plain_pyramid(encoder.width, out)
            coarser = tuple(range(LEVELS))
        self.head = FpnHead(out, config.channels, classes, coarser, config.dropout)

    def maps(self, images: Float[Tensor, "b 3 s s"]) -> list[Float[Tensor, "b c h w"]]:
        """The taps as pictures, as their blocks left them: no norm behind."""
        features = self.encoder(images, taps=self.taps)
        return [as_map(features, tap, self.encoder.config) for tap in self.taps]

    def coarse_logits(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b classes h w"]:
        """Logits at the finest level's size, a quarter of a patch each."""
        return self.head([level(x) for level, x in zip(self.pyramid, self.maps(images), strict=True)])

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b classes s s"]:
        """Logits of each pixel."""
        return resized(self.coarse_logits(images), images.shape[-2:])

    def no_weight_decay(self) -> set[str]:
        """Positions and class token, as in the classifiers."""
        return {f"encoder.vit.{name}" for name in ("cls_token", "pos_embed")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer-wise learning rates: the embedding, each block, and at the full rate all the rest."""
        del coarse
        stem = r"^encoder\.vit\.(?:cls_token|pos_embed|patch_embed)"
        return {"stem": stem, "blocks": r"^encoder\.vit\.blocks\.(\d+)"}


def _trainable(config: EncoderSize, drop_path: float) -> Encoder:
    """An encoder whose blocks may be dropped, whose positions learn and whose final norm, which is not used, does not."""
    encoder = build_encoder(config)
    vit = bare_vit(config, num_classes=0, global_pool="", drop_path=drop_path)
    vit.load_state_dict(encoder.vit.state_dict())
    encoder.vit = vit  # pyright: ignore[reportAttributeAccessIssue]
    norm = vit.head.norm if isinstance(config, HieraConfig) else vit.norm
    # A parameter without a gradient would make several processes wait for it for ever.
    norm.requires_grad_(False)  # pyright: ignore
    return encoder


def as_map(features: Features, tap: int, config: EncoderSize) -> Float[Tensor, "b c h w"]:
    """A tap's patch tokens on their grid; the class token is left out."""
    x, (rows, columns), split = features.tokens[tap][:, features.prefix :], features.grid, config.split_at(tap)
    # Not len(x): a graph that is exported would keep that number.
    batch, _, width = x.shape
    x = x.reshape(batch, rows, columns, split, split, width).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, width, rows * split, columns * split)


def resized(x: Float[Tensor, "b c h w"], size: tuple[int, int] | torch.Size) -> Float[Tensor, "b c H W"]:
    """Bilinear, corners not aligned; nothing is done where the size is that already."""
    size = (int(size[0]), int(size[1]))
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def slide_logits(
    run: Callable[[Tensor], Tensor], images: Float[Tensor, "b 3 h w"], size: int, stride: int
) -> Float[Tensor, "b classes h w"]:
    """Mean of the logits of overlapping windows; the torch form of `edgemim.edge.segmentation.slide_logits`.

    Args:
        run: normalised windows [b, 3, size, size] to logits of the same height and width.
        images: normalised, no side below `size`.
        size: side of a window, pixels.
        stride: pixels from one window to the next.
    """
    height, width = images.shape[-2:]
    count = images.new_zeros(1, 1, height, width)
    total: Tensor | None = None
    for top in window_starts(height, size, stride):
        for left in window_starts(width, size, stride):
            rows, columns = slice(top, top + size), slice(left, left + size)
            logits = run(images[:, :, rows, columns])
            if total is None:
                total = logits.new_zeros(len(images), logits.shape[1], height, width)
            total[:, :, rows, columns] += logits
            count[:, :, rows, columns] += 1
    assert total is not None
    return total / count
