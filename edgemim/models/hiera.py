"""The encoder's forward over timm's `Hiera`: whole mask units are dropped, tokens come back in the patch grid's order.

Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles, arXiv 2306.00989. timm's submodules are called,
none is written again; its own convention, True = kept, begins and ends at those calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.hiera import Hiera, HieraBlock, MaskUnitAttention
from torch import Tensor, nn

from edgemim.models.encoder import Encoder, Features, TokenMask, gather_tokens, initialise_linear
from edgemim.models.sizes import HieraConfig


class HieraEncoder(Encoder):
    """A hierarchical vision transformer without a class token; positions are learnt.

    `Features` of a tap: visible patches in grid order; where a patch still consists of k x k tokens
    (`config.split_at(tap)`), these stand side by side, row by row: [b, visible * k * k, config.width_at(tap)].
    Behind `Features.norm` tokens of an earlier stage are normed without the final norm's gain and bias.
    A mask hides whole mask units (`config.unit` patches square).
    """

    config: HieraConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    vit: Hiera  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: HieraConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.vit = bare_hiera(config, num_classes=0)
        self.initialise()

    def initialise(self) -> None:
        """Draw the weights as Hiera's masked autoencoder does: Xavier-uniform matrices, zero biases, N(0, 0.02)
        positions."""
        self.vit.apply(initialise_linear)
        patch = cast(nn.Conv2d, self.vit.patch_embed.proj)
        nn.init.xavier_uniform_(patch.weight.view(patch.weight.shape[0], -1))
        assert patch.bias is not None and self.vit.pos_embed is not None
        nn.init.zeros_(patch.bias)
        nn.init.trunc_normal_(self.vit.pos_embed, std=0.02)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        mask: TokenMask | None = None,
        *,
        taps: Collection[int] | None = None,
        attention: Collection[int] = (),
        fill: Float[Tensor, "1 1 width"] | None = None,
    ) -> Features:
        """Encode normalised images, or their visible mask units alone.

        Args:
            images: [b, 3, image_size, image_size], normalised.
            mask: which patches to hide, the same in all patches of a mask unit; None sees all.
            taps: blocks whose tokens are wanted, 0 for the embeddings; default the last one.
            attention: blocks whose attention logits are wanted, of those that `config.distils`: [b, heads, t, t].
            fill: None; a hidden mask unit is dropped and cannot be replaced.

        Raises:
            ValueError: on a mask token, or attention of a block without one map over all tokens.
        """
        if fill is not None:
            raise ValueError("Hiera drops hidden mask units; it has no place for a mask token")
        wanted = {self.config.depth} if taps is None else set(taps)
        keep = None if mask is None else self.units_kept(mask)
        x = self._embed_units(images, mask, keep)
        places = None if mask is None else self._places(mask, cast(Tensor, keep))
        tokens = {0: self._in_grid_order(x, 0, places)} if 0 in wanted else {}
        logits: dict[int, Tensor] = {}
        deepest = max({0, *wanted})
        for number, block in enumerate(islice(self.vit.blocks, max({deepest, *attention})), start=1):
            if number in attention:
                logits[number] = self._logits_of(number, cast(HieraBlock, block), x, places)
            if number > deepest and number == max(attention):
                break
            x = block(x)
            if number in wanted:
                tokens[number] = self._in_grid_order(x, number, places)
        norms = tuple(cast(HieraBlock, block).norm1 for block in self.vit.blocks)
        visible = None if mask is None else mask.visible
        return Features(tokens, logits, self.config.grid, 0, visible, self._norm, norms)

    def _norm(self, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
        norm = cast(nn.LayerNorm, self.vit.head.norm)
        return norm(x) if x.shape[-1] == self.config.width else F.layer_norm(x, x.shape[-1:], eps=norm.eps)

    def units_kept(self, mask: TokenMask) -> Bool[Tensor, "b units"]:
        """timm's form of a mask: True = kept, one for each mask unit."""
        side, (rows, columns) = self.config.unit, self.config.grid
        return ~mask.masked.view(-1, rows // side, side, columns // side, side)[:, :, 0, :, 0].flatten(1)

    def _embed_units(
        self, images: Tensor, mask: TokenMask | None, keep: Bool[Tensor, "b units"] | None
    ) -> Float[Tensor, "b t width"]:
        """Embedded tokens in timm's order, those of hidden units left out (and their pixels zero before the
        convolution, whose windows overlap)."""
        shape = cast("list[int]", self.vit.mask_spatial_shape)
        x = self.vit.patch_embed(images, mask=None if keep is None else keep.view(-1, 1, *shape))
        x = self.vit.unroll(self.vit._pos_embed(x))
        if mask is None or keep is None:
            return x
        # timm's order: the unit is the last index of a token's place.
        count = mask.visible.shape[1] // self.config.unit**2
        units = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        x = x.unflatten(1, (-1, keep.shape[1]))
        return x.gather(2, units[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])).flatten(1, 2)

    def _places(self, mask: TokenMask, keep: Bool[Tensor, "b units"]) -> Int[Tensor, "b v"]:
        """Where the visible patches stand when the kept units' patches are listed unit by unit."""
        return _place_in_units(mask.visible, keep, self.config.grid[1], self.config.unit)

    def _in_grid_order(self, x: Tensor, tap: int, places: Int[Tensor, "b v"] | None) -> Tensor:
        """Tokens in timm's order after block `tap`, patch by patch in grid order."""
        config = self.config
        split, batch, channels = config.split_at(tap), x.shape[0], x.shape[-1]
        if places is None:
            rows, columns = config.grid
            x = self.vit.reroll(x, max(tap - 1, 0)).view(batch, rows, split, columns, split, channels)
            return x.transpose(2, 3).reshape(batch, -1, channels)
        # With a mask, timm gives units: [b, kept, side, side, c]. Which units are kept plays no part in it.
        x = self.vit.reroll(x, max(tap - 1, 0), mask=places)
        x = x.reshape(batch, -1, config.unit, split, config.unit, split, channels).transpose(3, 4)
        patches = x.reshape(batch, -1, split**2 * channels)
        return gather_tokens(patches, places).view(batch, -1, channels)

    def _logits_of(self, number: int, block: HieraBlock, x: Tensor, places: Tensor | None) -> Tensor:
        if not self.config.distils(number):
            raise ValueError(f"block {number} has no single attention map over all tokens")
        index = torch.arange(x.shape[1], device=x.device).view(1, -1, 1).expand(len(x), -1, 1)
        order = self._in_grid_order(index, number, places).squeeze(-1)
        return global_logits(block.attn, gather_tokens(block.norm1(x), order))


def global_logits(attention: MaskUnitAttention, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b heads t t"]:
    """Pre-softmax logits q k^T / sqrt(d) of an attention over all tokens, whatever their order."""
    q, k, _ = attention.qkv(x).unflatten(-1, (3, attention.heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
    return (q * attention.scale) @ k.transpose(-2, -1)


@contextmanager
def unfused_windows(module: nn.Module) -> Iterator[None]:
    """Have a model's attention within mask units computed step by step while the context is open.

    timm hands it to a fused kernel as five dimensions, of which ONNX's exporter knows four.
    """
    fused = [m for m in module.modules() if isinstance(m, MaskUnitAttention) and m.use_mask_unit_attn and m.fused_attn]
    for attention in fused:
        attention.fused_attn = False  # pyright: ignore[reportAttributeAccessIssue] (final for TorchScript alone)
    try:
        yield
    finally:
        for attention in fused:
            attention.fused_attn = True  # pyright: ignore[reportAttributeAccessIssue]


def _place_in_units(
    visible: Int[Tensor, "b v"], keep: Bool[Tensor, "b units"], columns: int, side: int
) -> Int[Tensor, "b v"]:
    row, column = visible // columns, visible % columns
    unit = (row // side) * (columns // side) + column // side
    rank = (keep.cumsum(1) - 1).gather(1, unit)
    return rank * side**2 + (row % side) * side + column % side


def bare_hiera(config: HieraConfig, *, num_classes: int, drop_path: float = 0.0) -> Hiera:
    """timm's network of a configuration; a classifier pools the mean of its tokens, norms it and ends in a linear layer.

    `timm.create_model("hiera_tiny_224", embed_dim=46, num_classes=...)` is the same for the study's Hiera-Tiny with
    q_pool 3; as pre-trained, add `q_pool=2`.
    """
    stride, kernel = config.patch_stride, config.patch_kernel
    model = Hiera(
        img_size=(config.image_size, config.image_size),
        embed_dim=config.embed_dim,
        num_heads=config.first_heads,
        num_classes=num_classes,
        stages=config.stages,
        q_pool=config.q_pool,
        patch_kernel=(kernel, kernel),
        patch_stride=(stride, stride),
        patch_padding=(kernel // 2, kernel // 2),
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=drop_path,
    )
    # timm writes down the strides of its own sizes; what reads feature maps by stride needs those of this one.
    for stage, info in enumerate(model.feature_info):
        info["reduction"] = stride * 2 ** min(stage, config.q_pool)
    side = config.image_size
    cast(Any, model).default_cfg = {"input_size": (3, side, side), "fixed_input_size": True}
    return model
