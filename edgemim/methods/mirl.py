"""MIRL: shallow segments of a deep encoder predict an image's main part, deep ones what is left of it.

Masked Image Residual Learning for Scaling Deeper Vision Transformers, arXiv 2309.14136. The L blocks are cut into G
segments, tapped after blocks g L / G. Decoder g takes e_g = Linear_g(norm_g(tap_g)) back to the grid as queries and
attends to e_(g-1) ... e_1 and to level 0, the embeddings before any block, visible tokens alone. Decoders of segments g
and G + 1 - g add up: L = 2/G sum_(g <= G/2) mean over masked patches |y_g + y_(G+1-g) - x|^2, x normalised per patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import pydantic
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.methods.branches import Branch, MaskedImageModel
from edgemim.methods.decoders import TransformerDecoderConfig, unmask
from edgemim.methods.masking import RandomMasking
from edgemim.methods.method import Method, refuse_hierarchical, rising_blocks
from edgemim.methods.targets import PixelTarget
from edgemim.models.encoder import Encoder, Features, TokenMask, initialise_linear
from edgemim.models.normalization import Normalization
from edgemim.models.position import sincos_positions
from edgemim.models.sizes import EncoderSize

_SEGMENTS = 6
_norm = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class LevelFeatures(Features):
    """Features with the embeddings of every segment in the decoders' width; level 0 is the encoder's input."""

    levels: tuple[Float[Tensor, "b t width"], ...] = ()


class Levels(nn.Module):
    """The neck that all decoders share: a norm and a linear layer for each tap, the encoder's final norm for the last."""

    def __init__(self, taps: tuple[int, ...], in_width: int, width: int) -> None:
        super().__init__()
        self.taps = (0, *taps)
        self.norms = nn.ModuleList(_norm(in_width) for _ in taps)
        self.embeds = nn.ModuleList(nn.Linear(in_width, width) for _ in self.taps)
        self.embeds.apply(initialise_linear)

    def forward(self, features: Features) -> LevelFeatures:
        """Features with their levels."""
        *inner, last = self.taps
        normed = [norm(features.tokens[tap]) for norm, tap in zip(self.norms, inner, strict=True)]
        normed.append(features.normed(last))
        levels = tuple(embed(x) for embed, x in zip(self.embeds, normed, strict=True))
        return LevelFeatures(**vars(features), levels=levels)


class CrossAttention(nn.Module):
    """Multi-head attention of queries to another sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t width"], context: Float[Tensor, "b s width"]) -> Float[Tensor, "b t width"]:
        """What each query takes from the context."""
        q, k, v = (self._heads(part) for part in (self.q(x), *self.kv(context).chunk(2, dim=-1)))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CrossBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each behind a norm and added to its input."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.attn = _norm(width), Attention(width, num_heads=heads, qkv_bias=True)
        self.norm_query, self.norm_context = _norm(width), _norm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.norm_mlp, self.mlp = _norm(width), Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Float[Tensor, "b t width"], context: Float[Tensor, "b s width"]) -> Float[Tensor, "b t width"]:
        """The block's output for its queries."""
        x = x + self.attn(self.norm1(x))
        x = x + self.cross_attn(self.norm_query(x), self.norm_context(context))
        return x + self.mlp(self.norm_mlp(x))


class UnitLinear(nn.Module):
    """A linear layer whose weights have norm 1 for each input channel, over the outputs: only the norm before it scales.

    As in the published code (PaddlePaddle's weight norm, gain held at 1), which stores [in, out]; torch's default
    would take the norm of each output.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(nn.init.xavier_uniform_(torch.empty(out, width)))
        self.bias = nn.Parameter(torch.zeros(out))

    @property
    def weight(self) -> Float[Tensor, "out width"]:
        """What is multiplied with."""
        return F.normalize(self.direction, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """The linear map."""
        return F.linear(x, self.weight, self.bias)


class SegmentDecoder(nn.Module):
    """One segment's prediction for every patch, from its own level and all that are shallower."""

    def __init__(self, segment: int, out: int, grid: tuple[int, int], sizes: TransformerDecoderConfig) -> None:
        super().__init__()
        self.segment = segment
        self.mask_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.positions = nn.Buffer(sincos_positions(sizes.width, grid, prefix=1), persistent=False)
        self.blocks = nn.ModuleList(CrossBlock(sizes.width, sizes.heads, sizes.mlp_ratio) for _ in range(sizes.depth))
        self.norm = _norm(sizes.width)
        self.head = UnitLinear(sizes.width, out)
        self.blocks.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: LevelFeatures, mask: TokenMask) -> Float[Tensor, "b n out"]:
        """Predict every patch."""
        return self.head(self.norm(self.tokens(features, mask)))[:, features.prefix :]

    def tokens(self, features: LevelFeatures, mask: TokenMask) -> Float[Tensor, "b t width"]:
        """What the blocks make of the grid, class token first."""
        x = unmask(features.levels[self.segment], self.mask_token, mask, features) + self.positions
        context = torch.cat(features.levels[: self.segment][::-1], dim=1)
        for block in self.blocks:
            x = block(x, context)
        return x


class PairDecoder(nn.Module):
    """The main prediction of a shallow segment plus the residual one of its mirror."""

    def __init__(self, main: SegmentDecoder, residual: SegmentDecoder) -> None:
        super().__init__()
        self.main, self.residual = main, residual

    def forward(self, features: LevelFeatures, mask: TokenMask) -> Float[Tensor, "b n out"]:
        """Their sum."""
        return self.main(features, mask) + self.residual(features, mask)


class MirlConfig(Method):
    """Masked image residual learning: pairs of a shallow and a deep segment reconstruct together; for deep encoders."""

    name: Literal["mirl"] = "mirl"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    segments: int | None = pydantic.Field(default=None, ge=2, multiple_of=2)
    """Segments of the encoder, two to a pair; default the largest even number up to 6 that divides its depth."""
    taps: tuple[int, ...] = ()
    """Last block of each segment, the encoder's last among them, for segments of unequal length; an even number."""
    decoder: TransformerDecoderConfig = TransformerDecoderConfig()
    """Width, cross-attending blocks and heads of each segment's decoder (the paper: 512, 2, 16 for ViT-B-48)."""

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on a hierarchical encoder, or on `taps` that make no pairs of segments."""
        refuse_hierarchical(
            self.name, size, "its decoders attend to tokens of every depth, which must have one width and one grid"
        )
        if self.taps:
            rising_blocks("taps", self.taps, size.depth)
            if len(self.taps) % 2 or self.taps[-1] != size.depth or self.segments not in (None, len(self.taps)):
                raise UserError(
                    f"'taps' {list(self.taps)} must be an even number of blocks that ends with the encoder's last, "
                    f"{size.depth}, and agree with 'segments' where both are given"
                )

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model; a teacher plays no part. Raises UserError if the depth has no such segments."""
        self.check(encoder.config)
        size = encoder.config
        taps = self.taps or self._equal_segments(size.depth)
        count = len(taps)
        target = PixelTarget(size.patch_size, normalize=True)
        neck = Levels(taps, size.width, self.decoder.width)
        decoders = [SegmentDecoder(g, target.channels, size.grid, self.decoder) for g in range(1, count + 1)]
        branches = [
            Branch(f"pair_{g + 1}", PairDecoder(decoders[g], decoders[-1 - g]), target, "mse", weight=2 / count)
            for g in range(count // 2)
        ]
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), branches, normalization, neck=neck)

    def _equal_segments(self, depth: int) -> tuple[int, ...]:
        possible = [count for count in range(2, depth + 1, 2) if depth % count == 0]
        if not possible:
            raise UserError(f"method mirl pairs segments of equal length; a depth of {depth} is odd")
        if self.segments is not None and self.segments not in possible:
            raise UserError(
                f"'segments' {self.segments} does not divide the encoder's depth {depth}; take one of {possible}"
            )
        count = self.segments or max(count for count in possible if count <= _SEGMENTS)
        return tuple(depth * g // count for g in range(1, count + 1))
