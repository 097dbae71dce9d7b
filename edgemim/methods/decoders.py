"""Decoders: from an encoder's features to a prediction for every patch."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import pydantic
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from edgemim.config import Config, Presets
from edgemim.models.encoder import Features, TokenMask, initialise_linear
from edgemim.models.position import sincos_positions
from edgemim.models.sizes import EncoderSize, HieraConfig


class Pick(nn.Module):
    """The neck of most decoders: one tap's tokens, behind the encoder's final norm or as the block left them."""

    def __init__(self, tap: int, *, normed: bool = True) -> None:
        super().__init__()
        self.taps = (tap,)
        self.normed = normed

    def forward(self, features: Features) -> Float[Tensor, "b t width"]:
        """Tokens, class token first."""
        (tap,) = self.taps
        return features.normed(tap) if self.normed else features.tokens[tap]


class FuseStages(nn.Module):
    """Hiera's neck (arXiv 2306.00989, its masked autoencoder): z = norm(x_tap + sum_s conv_s(x_s)).

    s are the last blocks of the stages that come before a halving of the grid; conv_s makes one token of the final width
    of the k x k that a patch still is there. A tap before the last stage gets a convolution too, of 1 x 1 as a rule
    (ours; the published model fuses into the last block). The norm is the encoder's final one.
    """

    def __init__(self, size: HieraConfig, tap: int) -> None:
        super().__init__()
        ends = [end for end in size.stage_ends[: size.q_pool] if end < tap]
        self.taps = (*ends, tap)
        self._as_it_is = (size.width_at(tap), size.split_at(tap)) == (size.width, 1)
        self.heads = nn.ModuleList(
            nn.Conv2d(size.width_at(read), size.width, size.split_at(read), stride=size.split_at(read))
            for read in (ends if self._as_it_is else self.taps)
        )

    def parts(self, features: Features) -> list[Float[Tensor, "b t width"]]:
        """What is summed: of each stage, shallow to deep."""
        parts = []
        for tap, head in zip(self.taps, self.heads, strict=False):
            assert isinstance(head, nn.Conv2d)
            # A convolution whose windows do not overlap, as a matrix on the tokens of each patch.
            tokens = features.tokens[tap].unflatten(1, (-1, head.weight.shape[2] * head.weight.shape[3])).flatten(2)
            parts.append(F.linear(tokens, head.weight.permute(0, 2, 3, 1).flatten(1), head.bias))
        return [*parts, features.tokens[self.taps[-1]]] if self._as_it_is else parts

    def forward(self, features: Features) -> Float[Tensor, "b t width"]:
        """Fused tokens, one for each visible patch."""
        first, *others = self.parts(features)
        return features.norm(sum(others, first))


def final_tokens(size: EncoderSize, tap: int | None = None) -> nn.Module:
    """The neck of a masked autoencoder's decoder: the last block's tokens (or another's) behind the final norm."""
    tap = size.depth if tap is None else tap
    return FuseStages(size, tap) if isinstance(size, HieraConfig) else Pick(tap)


class Fuse(nn.Module):
    """MFF's neck (arXiv 2308.00261): z = norm(sum_i s_i P_i(x_i)) over several taps, s = softmax(w), w from ones.

    P_i is linear for all taps but the deepest, which enters as it is; the norm is the encoder's final one.
    """

    def __init__(self, taps: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.taps = taps
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in taps[:-1])
        self.weights = nn.Parameter(torch.ones(len(taps)))
        self.projections.apply(initialise_linear)

    def forward(self, features: Features) -> Float[Tensor, "b t width"]:
        """Fused tokens, class token first."""
        *shallow, last = (features.tokens[tap] for tap in self.taps)
        share = self.weights.softmax(0)
        fused = share[-1] * last
        for weight, project, tokens in zip(share, self.projections, shallow, strict=False):
            fused = fused + weight * project(tokens)
        return features.norm(fused)


class TransformerDecoder(nn.Module):
    """MAE's decoder (arXiv 2111.06377): visible tokens back in grid order, one mask token in the holes, blocks, linear.

    Predicts [b, n, out] for all patches of the grid. Positions are fixed sine-cosine, or learnt from N(0, 0.02) as in
    Hiera's (arXiv 2306.00989).
    """

    def __init__(
        self,
        neck: nn.Module,
        in_width: int,
        out: int,
        grid: tuple[int, int],
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        prefix: int = 1,
        learn_positions: bool = False,
    ) -> None:
        super().__init__()
        self.neck = neck
        self.embed = nn.Linear(in_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        if learn_positions:
            self.positions = nn.Parameter(torch.zeros(1, prefix + grid[0] * grid[1], width))
            nn.init.trunc_normal_(self.positions, std=0.02)
        else:
            self.positions = nn.Buffer(sincos_positions(width, grid, prefix=prefix), persistent=False)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm)  # pyright: ignore[reportArgumentType] (a factory will do)
            for _ in range(depth)
        )
        self.norm = norm(width)
        self.head = nn.Linear(width, out)
        for part in (self.embed, self.blocks, self.head):
            part.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, mask: TokenMask) -> Float[Tensor, "b n out"]:
        """Predict every patch from the neck's tokens."""
        x = self.embed(self.neck(features))
        x = unmask(x, self.mask_token, mask, features) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))[:, features.prefix :]


def unmask(
    x: Float[Tensor, "b t width"], mask_token: Float[Tensor, "1 1 width"], mask: TokenMask, features: Features
) -> Float[Tensor, "b prefix+n width"]:
    """Put visible tokens back at their places in the grid, the mask token into the holes; class tokens stay in front."""
    prefix, patches = x[:, : features.prefix], x[:, features.prefix :]
    if features.visible is not None:
        holes = mask_token.to(x.dtype).expand(len(x), mask.masked.shape[1], -1)
        patches = holes.scatter(1, features.visible.unsqueeze(-1).expand(-1, -1, x.shape[-1]), patches)
    return torch.cat([prefix, patches], dim=1)


class LinearDecoder(nn.Module):
    """One linear layer on each token; for encoders through which every patch passes."""

    def __init__(self, neck: nn.Module, in_width: int, out: int) -> None:
        super().__init__()
        self.neck = neck
        self.head = nn.Linear(in_width, out)
        self.head.apply(initialise_linear)

    def forward(self, features: Features, mask: TokenMask) -> Float[Tensor, "b n out"]:
        """Predict every patch. Raises ValueError if patches were dropped: there is nothing to predict them from."""
        x = self.neck(features)[:, features.prefix :]
        if x.shape[1] != mask.masked.shape[1]:
            raise ValueError(
                "a linear decoder cannot predict dropped patches; use a transformer decoder or mask ratio 0"
            )
        return self.head(x)


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
    mlp_ratio: float = pydantic.Field(default=4.0, gt=0)
    """Hidden width of the MLP over the token width."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TransformerDecoderConfig:
        if self.width % self.heads:
            raise ValueError(f"decoder width {self.width} is not a multiple of its heads {self.heads}")
        return self

    def build(
        self,
        neck: nn.Module,
        in_width: int,
        out: int,
        grid: tuple[int, int],
        *,
        prefix: int = 1,
        learn_positions: bool = False,
    ) -> TransformerDecoder:
        """Make the decoder behind a neck of `in_width` channels and `prefix` class tokens that predicts `out` numbers a
        patch."""
        return TransformerDecoder(
            neck,
            in_width,
            out,
            grid,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            prefix=prefix,
            learn_positions=learn_positions,
        )


class LinearDecoderConfig(Config):
    """One linear layer a token; only where no patch is dropped."""

    name: Literal["linear"] = "linear"
    """The kind of decoder."""

    def build(
        self,
        neck: nn.Module,
        in_width: int,
        out: int,
        grid: tuple[int, int],
        *,
        prefix: int = 1,
        learn_positions: bool = False,
    ) -> LinearDecoder:
        """Make the decoder behind a neck of `in_width` channels that predicts `out` numbers a patch."""
        return LinearDecoder(neck, in_width, out)


DecoderConfig = Annotated[
    TransformerDecoderConfig | LinearDecoderConfig,
    pydantic.Field(discriminator="name"),
    Presets({"transformer": TransformerDecoderConfig(), "linear": LinearDecoderConfig()}),
]
