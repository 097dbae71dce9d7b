"""Decoders: from an encoder's features to a prediction for every patch."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from edgemim.config import Config, Presets
from edgemim.models.encoder import Features, TokenMask, initialise_linear
from edgemim.models.position import sincos_positions


class TransformerDecoder(nn.Module):
    """MAE's decoder (arXiv 2111.06377): visible tokens back in grid order, one mask token in the holes, blocks, linear.

    Reads the tokens of one tap; predicts [b, n, out] for all patches of the grid. Positions are fixed sine-cosine.
    """

    def __init__(
        self, in_width: int, out: int, grid: tuple[int, int], *, width: int, depth: int, heads: int, tap: int
    ) -> None:
        super().__init__()
        self.tap = tap
        self.embed = nn.Linear(in_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Buffer(sincos_positions(width, grid, prefix=1), persistent=False)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, norm_layer=norm)  # pyright: ignore[reportArgumentType] (a factory will do)
            for _ in range(depth)
        )
        self.norm = norm(width)
        self.head = nn.Linear(width, out)
        self.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, mask: TokenMask) -> Float[Tensor, "b n out"]:
        """Predict every patch from the tapped tokens."""
        x = self.embed(features.tokens[self.tap])
        prefix, patches = x[:, : features.prefix], x[:, features.prefix :]
        holes = self.mask_token.to(x.dtype).expand(len(x), mask.masked.shape[1], -1)
        patches = holes.scatter(1, mask.visible.unsqueeze(-1).expand(-1, -1, x.shape[-1]), patches)
        x = torch.cat([prefix, patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))[:, features.prefix :]


class LinearDecoder(nn.Module):
    """One linear layer on each token of one tap; for encoders that see every patch."""

    def __init__(self, in_width: int, out: int, *, tap: int) -> None:
        super().__init__()
        self.tap = tap
        self.head = nn.Linear(in_width, out)
        self.apply(initialise_linear)

    def forward(self, features: Features, mask: TokenMask) -> Float[Tensor, "b n out"]:
        """Predict every patch. Raises ValueError if patches were dropped: there is nothing to predict them from."""
        if mask.visible.shape[1] != mask.masked.shape[1]:
            raise ValueError(
                "a linear decoder cannot predict dropped patches; use a transformer decoder or mask ratio 0"
            )
        return self.head(features.patches(self.tap))


class TransformerDecoderConfig(Config):
    """A transformer decoder; the lightweight study's for ViT-Tiny is 96 wide, 1 block, 3 heads."""

    name: Literal["transformer"] = "transformer"
    """The kind of decoder."""
    width: int = pydantic.Field(default=96, ge=4, multiple_of=4)
    """Channels of a token inside the decoder."""
    depth: int = pydantic.Field(default=1, ge=1)
    """Blocks of the decoder."""
    heads: int = pydantic.Field(default=3, ge=1)
    """Attention heads of a block; must divide the width."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TransformerDecoderConfig:
        if self.width % self.heads:
            raise ValueError(f"decoder width {self.width} is not a multiple of its heads {self.heads}")
        return self

    def build(self, in_width: int, out: int, grid: tuple[int, int], tap: int) -> TransformerDecoder:
        """Make the decoder of a tap with `in_width` channels that predicts `out` numbers a patch."""
        return TransformerDecoder(in_width, out, grid, width=self.width, depth=self.depth, heads=self.heads, tap=tap)


class LinearDecoderConfig(Config):
    """One linear layer a token; only where no patch is dropped."""

    name: Literal["linear"] = "linear"
    """The kind of decoder."""

    def build(self, in_width: int, out: int, grid: tuple[int, int], tap: int) -> LinearDecoder:
        """Make the decoder of a tap with `in_width` channels that predicts `out` numbers a patch."""
        return LinearDecoder(in_width, out, tap=tap)


DecoderConfig = Annotated[
    TransformerDecoderConfig | LinearDecoderConfig,
    pydantic.Field(discriminator="name"),
    Presets({"transformer": TransformerDecoderConfig(), "linear": LinearDecoderConfig()}),
]
