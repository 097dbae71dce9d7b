"""Relative positions over timm's `Beit`: a bias for each offset and head, of each block or for all, added to attention.

BEiT, arXiv 2106.08254; the lightweight study's ViT-Tiny (arXiv 2205.14443) is fine-tuned so, SimMIM's ViT (arXiv
2111.09886) pre-trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from edgemim.models.encoder import Encoder
from edgemim.models.sizes import RelativeVitConfig


class RelativeVit(Beit):
    """timm's `Beit` of a configuration; keys may keep the bias that timm's lacks, then `qkv.bias` is as in a plain ViT."""

    def __init__(
        self, config: RelativeVitConfig, *, num_classes: int = 0, global_pool: str = "", drop_path: float = 0.0
    ) -> None:
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=not config.key_bias,
            init_values=config.layer_scale,
            use_abs_pos_emb=config.absolute_positions,
            use_rel_pos_bias=config.offsets != "shared",
            use_shared_rel_pos_bias=config.offsets != "block",
            num_classes=num_classes,
            global_pool=global_pool,
            drop_path_rate=drop_path,
            head_init_scale=1.0,
        )
        if config.key_bias:
            for block in self.blocks:
                block.attn.qkv.bias = nn.Parameter(torch.zeros(3 * config.width))  # pyright: ignore

    def no_weight_decay(self) -> set[str]:
        """The class token and absolute positions; tables of offsets are decayed, as published."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layers, but for the shared table: it learns at the head's rate, as in BEiT's published code."""
        return {**super().group_matcher(coarse), "stem": r"^cls_token|pos_embed|patch_embed"}


class RelativeEncoder(Encoder):
    """A vision transformer whose attention knows how far apart two patches are; its logits hold that bias."""

    config: RelativeVitConfig
    vit: RelativeVit  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: RelativeVitConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.vit = RelativeVit(config)
        self.initialise()

    def _biases(self, visible: Int[Tensor, "b v"] | None) -> Sequence[Float[Tensor, "... heads t t"]]:
        """What each block adds to its logits: that of the offsets between the tokens that are there."""
        blocks, shared = self.vit.blocks, None
        if self.vit.rel_pos_bias is not None:
            shared = self.vit.rel_pos_bias.relative_position_bias_table
        places = torch.arange(self.config.tokens + 1, device=self.vit.cls_token.device)[None]
        if visible is not None:
            places = torch.cat([visible.new_zeros(len(visible), 1), visible + 1], dim=1)
        index = self._offsets[places[:, :, None], places[:, None, :]]
        if self.config.offsets == "shared":
            assert shared is not None
            return [_look_up(shared, index)] * len(blocks)
        tables = [cast(Tensor, cast(Block, block).attn.relative_position_bias_table) for block in blocks]
        return [_look_up(table if shared is None else table + shared, index) for table in tables]

    @property
    def _offsets(self) -> Int[Tensor, "t t"]:
        """The number, in a table, of the offset between two tokens."""
        holder = self.vit.rel_pos_bias or cast(Block, self.vit.blocks[0]).attn
        return cast(Tensor, holder.relative_position_index)

    def _logits(self, block: nn.Module, x: Tensor, bias: Tensor | None) -> Float[Tensor, "b heads t t"]:
        assert isinstance(block, Block) and bias is not None
        q, k, _ = _heads(block.attn, block.norm1(x))
        return (q * block.attn.scale) @ k.transpose(-2, -1) + bias

    def _run(self, block: nn.Module, x: Tensor, bias: Tensor | None) -> Float[Tensor, "b t width"]:
        # timm's block looks its own table up for the whole window; where patches were dropped that does not fit, so
        # its parts are called in its order.
        assert isinstance(block, Block)
        q, k, v = _heads(block.attn, block.norm1(x))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        x = x + block.drop_path1(_scaled(block.attn.proj(mixed), block.gamma_1))
        return x + block.drop_path2(_scaled(block.mlp(block.norm2(x)), block.gamma_2))


def _look_up(table: Float[Tensor, "n heads"], index: Int[Tensor, "b t t"]) -> Float[Tensor, "b heads t t"]:
    # Head by head: twice as fast as rows of few numbers, there and back.
    return table.T.index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)


def _heads(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [b, heads, t, d] of a timm attention."""
    bias = attention.qkv.bias
    if attention.q_bias is not None and attention.k_bias is not None and attention.v_bias is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    parts = F.linear(x, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else scale * x


def from_plain(weights: Mapping[str, Tensor], config: RelativeVitConfig) -> dict[str, Tensor]:
    """A plain ViT's weights under the names of a `RelativeVit`; tables of offsets are not among them.

    Where keys have no bias, the plain one's goes under `k_bias`, which the network lacks: it moves all logits of a query
    alike, which the softmax does not see, so without it the network computes the same.
    """
    if config.key_bias:
        return dict(weights)
    split: dict[str, Tensor] = {}
    for key, value in weights.items():
        stem = key.removesuffix("qkv.bias")
        if stem == key:
            split[key] = value
        else:
            parts = value.chunk(3)
            split |= {f"{stem}{name}_bias": part.clone() for name, part in zip("qkv", parts, strict=True)}
    return split
