"""A tracker as the graphs that runtimes run fastest: one for joint attention, two for the cached form; batch of one.

The weights are the tracker's own, laid out anew. Queries, keys and values come from a linear layer each, so that heads
are split by one transpose that runtimes take into their attention kernel, and keys are never turned twice; the scale of
the logits stands in the queries' weights. Of the last block only what the head sees is computed. Measured on ViT-Tiny
128/256 with 12 heads, one thread, network alone: OpenVINO FP32 50.8 to 50.1 ms, ONNX Runtime 55.1 to 54.5.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.export.attention_form import projection_part
from edgemim.models.elimination import choose, restore_tokens, template_attention, template_mask
from edgemim.models.matching import directions, similarities
from edgemim.models.one_stream import OneStreamTracker

Maps = tuple[Tensor, Tensor, Tensor]
MAP_NAMES = ("score", "offset", "size")
CACHE_NAMES = ("cache_k", "cache_v", "cache_m")
"""What the template's graph gives: keys, values, and where blocks match (else left out) what search tokens are matched
with."""


class SplitBlock(nn.Module):
    """One block with its attention taken apart."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention = cast(Attention, block.attn)
        self.heads, self.depth = attention.num_heads, attention.head_dim
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.projection = attention.proj
        self.query, self.key, self.value = (projection_part(attention.qkv, number) for number in range(3))
        # A power of two for the published 16 and 64 channels a head: not a bit is lost.
        for parameter in self.query.parameters():
            parameter.data *= attention.scale

    def mix(
        self, queries: Float[Tensor, "1 q width"], keys: Float[Tensor, "1 t width"], values: Float[Tensor, "1 t width"]
    ) -> Float[Tensor, "1 q width"]:
        """Attention of projected tokens, projected back."""
        q, v = self.split(queries), self.split(values)
        k = keys.reshape(1, -1, self.heads, self.depth).permute(0, 2, 3, 1)
        mixed = (q @ k).softmax(dim=-1) @ v
        return self.projection(mixed.permute(0, 2, 1, 3).reshape(1, -1, self.heads * self.depth))

    def split(self, x: Float[Tensor, "1 t width"]) -> Float[Tensor, "1 heads t d"]:
        """Tokens head by head."""
        return x.reshape(1, -1, self.heads, self.depth).permute(0, 2, 1, 3)

    def transform(self, x: Float[Tensor, "1 t width"]) -> Float[Tensor, "1 t width"]:
        """The second half of the block."""
        return x + self.mlp(self.norm2(x))


class _Graph(nn.Module):
    """What all graphs share; parts of the tracker that need no change are its own."""

    def __init__(self, model: OneStreamTracker) -> None:
        super().__init__()
        self.tracker_size = model.size
        self.patches = model.vit.patch_embed.proj
        self.blocks = nn.ModuleList(SplitBlock(cast(Block, block)) for block in model.vit.blocks)

    @property
    def _split_blocks(self) -> list[SplitBlock]:
        return [cast(SplitBlock, block) for block in self.blocks]

    def _embed(self, crop: Tensor, positions: Tensor) -> Float[Tensor, "1 n width"]:
        return self.patches(crop).flatten(2).transpose(1, 2) + positions


class _SearchingGraph(_Graph):
    """A graph that ends in the head."""

    def __init__(self, model: OneStreamTracker) -> None:
        super().__init__(model)
        self.search_positions, self.norm, self.head = model.search_positions, model.vit.norm, model.head

    def _maps(self, search: Float[Tensor, "1 s width"], similar: list[Tensor]) -> Maps:
        search = torch.cat([search, *similar], dim=2) if similar else search
        side, width = self.tracker_size.search_grid, search.shape[-1]
        score, offset, size = self.head(search.transpose(1, 2).reshape(1, width, side, side))
        return score, offset, size


class JointGraph(_SearchingGraph):
    """(template, search) -> (score, offset, size), all tokens in one stream; without elimination unless it is asked for."""

    def __init__(self, model: OneStreamTracker, *, elimination: bool = False) -> None:
        super().__init__(model)
        size = model.size
        if size.attention != "joint":
            raise ValueError("the cached form has two graphs")
        self.template_positions = model.template_positions
        self.keeps = size.keeps if elimination else {}
        if elimination and not self.keeps:
            raise UserError("the tracker drops no search tokens; leave --elimination out")
        if elimination and size.ranked_by == "box":
            raise UserError(
                "where the tokens on the template's box rank, elimination cannot be in a graph; leave it out"
            )
        rows = "point" if size.ranked_by == "box" else size.ranked_by
        self.register_buffer("rows", template_mask(rows, size.template_grid, 1), persistent=False)

    def forward(self, template: Float[Tensor, "1 3 z z"], search: Float[Tensor, "1 3 s s"]) -> Maps:
        """The maps of a pair of normalised crops."""
        x = torch.cat(
            [self._embed(template, self.template_positions), self._embed(search, self.search_positions)], dim=1
        )
        size = self.tracker_size
        count, tokens = size.template_grid**2, size.search_grid**2
        template, places = torch.arange(count), torch.arange(tokens)[None]
        last = len(self.blocks)
        similar = []
        for number, block in enumerate(self._split_blocks, start=1):
            y = block.norm1(x)
            keys, values = block.key(y), block.value(y)
            if number == last and not self._needs_template(number):  # the head sees the search region's tokens alone
                x, y = x[:, count:], y[:, count:]
            queries = block.query(y)
            x = x + block.mix(queries, keys, values)
            if number in self.keeps:
                attention = template_attention(block.split(queries[:, :count]), block.split(keys), 1.0)
                chosen, elimination = choose(attention, cast(Tensor, self.rows), places, self.keeps[number])
                x, places = x.index_select(1, torch.cat([template, count + chosen[0]])), elimination.kept
            x = block.transform(x)
            if number in size.matching_blocks:
                found = similarities(directions(x[:, :count]), directions(x[:, count:]))
                similar.append(restore_tokens(found, places, tokens) if found.shape[1] < tokens else found)
        x = self.norm(x[:, count:] if self._needs_template(last) else x)
        return self._maps(restore_tokens(x, places, tokens) if self.keeps else x, similar)

    def _needs_template(self, block: int) -> bool:
        """Whether something behind a block's attention asks for the template's tokens, were it the last."""
        return block in self.keeps or block in self.tracker_size.matching_blocks


class TemplateGraph(_Graph):
    """(template) -> (cache_k, cache_v), [depth, n, width], and cache_m, [matching blocks, n, width]: what search tokens
    need of the template."""

    def __init__(self, model: OneStreamTracker) -> None:
        super().__init__(model)
        self.template_positions = model.template_positions

    def forward(self, template: Float[Tensor, "1 3 z z"]) -> tuple[Tensor, ...]:
        """Keys and values of a normalised crop, and what is matched with."""
        x = self._embed(template, self.template_positions)
        keys, values, matched = [], [], []
        blocks = self.tracker_size.matching_blocks
        for number, block in enumerate(self._split_blocks, start=1):
            y = block.norm1(x)
            keys.append(block.key(y))
            values.append(block.value(y))
            if number < len(self.blocks) or number in blocks:  # else nobody sees what it makes of the template
                x = block.transform(x + block.mix(block.query(y), keys[-1], values[-1]))
            if number in blocks:
                matched.append(directions(x))
        caches = torch.cat(keys), torch.cat(values)
        return (*caches, torch.cat(matched)) if matched else caches


class SearchGraph(_SearchingGraph):
    """(search, cache_k, cache_v, cache_m where blocks match) -> (score, offset, size)."""

    def forward(
        self, search: Float[Tensor, "1 3 s s"], cache_k: Tensor, cache_v: Tensor, cache_m: Tensor | None = None
    ) -> Maps:
        """The maps of a normalised crop, given what `TemplateGraph` found."""
        x = self._embed(search, self.search_positions)
        similar: list[Tensor] = []
        for number, block in enumerate(self._split_blocks):
            y = block.norm1(x)
            keys = torch.cat([cache_k[number : number + 1], block.key(y)], dim=1)
            values = torch.cat([cache_v[number : number + 1], block.value(y)], dim=1)
            x = block.transform(x + block.mix(block.query(y), keys, values))
            if number + 1 in self.tracker_size.matching_blocks:
                assert cache_m is not None
                matched = cache_m[len(similar) : len(similar) + 1]
                similar.append(similarities(matched, directions(x)))
        return self._maps(self.norm(x), similar)
