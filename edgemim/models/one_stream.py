"""A one-stream tracker: template and search region pass through the same blocks of a plain ViT, a head finds the box.

OSTrack, arXiv 2203.11991; on ViT-Tiny the tracker of the lightweight study, arXiv 2404.12210. The cached form, in which
the template's tokens see only each other, is MixFormer's asymmetric attention (arXiv 2203.11082) in a single stream.
timm's blocks and their parts are called, none is written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from edgemim.models.build import build_encoder
from edgemim.models.center_head import CenterHead, TrackMaps
from edgemim.models.elimination import (
    Elimination,
    choose,
    keep_tokens,
    restore_tokens,
    template_attention,
    template_mask,
)
from edgemim.models.matching import directions, similarities
from edgemim.models.sizes import VitConfig
from edgemim.models.tracker_sizes import TrackerSize
from edgemim.models.weights import KeyReport, load_weights

_POSITIONS = ("template_positions", "search_positions")


@dataclass(frozen=True)
class OneStreamFeatures:
    """What the blocks made of a pair.

    Attributes:
        template: [b, n, width] normed tokens.
        search: [b, s, width] normed tokens in grid order, zeros where one was dropped.
        similar: [b, s, k * n] similarities to the template's tokens behind each of the k matching blocks, in grid order.
        eliminated: for each block that dropped tokens, which.
    """

    template: Float[Tensor, "b n width"]
    search: Float[Tensor, "b s width"]
    similar: Float[Tensor, "b s kn"]
    eliminated: dict[int, Elimination] = field(default_factory=dict)


class OneStreamTracker(nn.Module):
    """An encoder without class token, two tables of learnt positions, and a centre head."""

    def __init__(self, size: TrackerSize, drop_path: float = 0.0) -> None:
        super().__init__()
        self.size = size
        encoder = size.encoder
        self.vit = VisionTransformer(
            patch_size=encoder.patch_size,
            embed_dim=encoder.width,
            depth=encoder.depth,
            num_heads=encoder.heads,
            mlp_ratio=encoder.mlp_ratio,
            num_classes=0,
            global_pool="",
            class_token=False,
            pos_embed="none",
            drop_path_rate=drop_path,
        )
        self.template_positions = nn.Parameter(torch.empty(1, size.template_grid**2, encoder.width))
        self.search_positions = nn.Parameter(torch.empty(1, size.search_grid**2, encoder.width))
        self.head = CenterHead(size.head_input, size.head_width)
        # Begins as an encoder does that is trained from scratch.
        initialise_from(self, build_encoder(encoder).vit.state_dict(), encoder)

    def forward(
        self,
        template: Float[Tensor, "b 3 z z"],
        search: Float[Tensor, "b 3 s s"],
        *,
        keep_rate: float | None = None,
        template_box: Float[Tensor, "b 4"] | None = None,
    ) -> TrackMaps:
        """The maps of normalised crops; the arguments are those of `features`."""
        features = self.features(template, search, keep_rate=keep_rate, template_box=template_box)
        return self.head(self._as_map(torch.cat([features.search, features.similar], dim=2)))

    def features(
        self,
        template: Float[Tensor, "b 3 z z"],
        search: Float[Tensor, "b 3 s s"],
        *,
        keep_rate: float | None = None,
        template_box: Float[Tensor, "b 4"] | None = None,
    ) -> OneStreamFeatures:
        """Run normalised crops through the blocks.

        Args:
            template: crop around the target.
            search: crop in which it is looked for.
            keep_rate: share of the search tokens that each eliminating block keeps (1: all stay); default each block's
                own.
            template_box: left, top, width, height over the template's side; only where the tokens on it rank.
        """
        x = torch.cat([self._embed(template, _POSITIONS[0]), self._embed(search, _POSITIONS[1])], dim=1)
        count = self.size.template_grid**2
        keeps = self.size.keeps if keep_rate is None else dict.fromkeys(self.size.drops, keep_rate)
        places = torch.arange(self.size.search_grid**2, device=x.device).expand(x.shape[0], -1)
        eliminated: dict[int, Elimination] = {}
        similar = [x[:, count:, :0]]
        for number, block in enumerate(self._blocks, start=1):
            if self.size.attention == "cached":
                x = _apart(block, x, count)
            elif keeps.get(number, 1.0) < 1.0:
                x, eliminated[number] = self._eliminate(block, x, places, keeps[number], template_box)
                places = eliminated[number].kept
            else:
                x = block(x)
            if number in self.size.matching_blocks:
                similar.append(self._in_grid(_matched(x, count), places))
        x = self.vit.norm(x)
        found = self._in_grid(x[:, count:], places)
        return OneStreamFeatures(x[:, :count], found, torch.cat(similar, dim=2), eliminated)

    def encode_template(self, template: Float[Tensor, "b 3 z z"]) -> tuple[Tensor, Tensor, Tensor]:
        """For the cached form: keys and values of the template in each block, [depth, b, heads, n, d], and what search
        tokens are matched with behind each matching block, [k, b, n, width]."""
        self._check_cached()
        x = self._embed(template, _POSITIONS[0])
        keys, values, matched = [], [], [x[None][:0]]
        for number, block in enumerate(self._blocks, start=1):
            q, k, v = project(block.attn, block.norm1(x))
            keys.append(k)
            values.append(v)
            x = _finish(block, x, mix(q, k, v))
            if number in self.size.matching_blocks:
                matched.append(directions(x)[None])
        return torch.stack(keys), torch.stack(values), torch.cat(matched)

    def search_with(
        self, search: Float[Tensor, "b 3 s s"], cache_k: Tensor, cache_v: Tensor, cache_m: Tensor
    ) -> TrackMaps:
        """The maps of a normalised search region, given what `encode_template` found; for the cached form."""
        self._check_cached()
        x = self._embed(search, _POSITIONS[1])
        similar, matched = [x[..., :0]], iter(cache_m)
        for number, block in enumerate(self._blocks, start=1):
            q, k, v = project(block.attn, block.norm1(x))
            k, v = torch.cat([cache_k[number - 1], k], dim=2), torch.cat([cache_v[number - 1], v], dim=2)
            x = _finish(block, x, mix(q, k, v))
            if number in self.size.matching_blocks:
                similar.append(similarities(next(matched), directions(x)))
        return self.head(self._as_map(torch.cat([self.vit.norm(x), *similar], dim=2)))

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of the whole tracker, of its backbone (embedding, positions, blocks, norm) and of its head."""
        head = sum(parameter.numel() for parameter in self.head.parameters())
        everything = sum(parameter.numel() for parameter in self.parameters())
        return {"tracker": everything, "backbone": everything - head, "head": head}

    def get_classifier(self) -> CenterHead:
        """The head, by timm's name for what stands on an encoder."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """The tables of positions."""
        return set(_POSITIONS)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer-wise learning rates: the embedding, each block, and at the full rate all the rest."""
        del coarse
        return {"stem": r"^vit\.patch_embed|^(?:template|search)_positions", "blocks": r"^vit\.blocks\.(\d+)"}

    @property
    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.vit.blocks]

    def _embed(self, crop: Tensor, positions: str) -> Float[Tensor, "b n width"]:
        tokens = self.vit.patch_embed.proj(crop).flatten(2).transpose(1, 2)
        return tokens + getattr(self, positions)

    def _as_map(self, search: Float[Tensor, "b s width"]) -> Float[Tensor, "b width g g"]:
        side, (batch, _, width) = self.size.search_grid, search.shape
        return search.transpose(1, 2).reshape(batch, width, side, side)

    def _eliminate(
        self, block: Block, x: Tensor, places: Tensor, keep: float, template_box: Tensor | None
    ) -> tuple[Tensor, Elimination]:
        """A block that drops search tokens between its attention and its MLP."""
        grid, scale = self.size.template_grid, cast(float, block.attn.scale)
        q, k, v = project(block.attn, block.norm1(x))
        x = _attended(block, x, mix(q, k, v))
        with torch.no_grad():
            mask = template_mask(
                self.size.ranked_by,
                grid,
                x.shape[0],
                patch_size=self.size.encoder.patch_size,
                boxes=template_box,
                device=x.device,
            )
            looked_at = template_attention(q[:, :, : grid**2], k, scale)
            chosen, elimination = choose(looked_at, mask, places, keep)
        return _transformed(block, keep_tokens(x, grid**2, chosen)), elimination

    def _in_grid(self, search: Float[Tensor, "b k width"], places: Tensor) -> Float[Tensor, "b s width"]:
        """Search tokens at their places; zeros where one was dropped."""
        count = self.size.search_grid**2
        return search if search.shape[1] == count else restore_tokens(search, places, count)

    def _check_cached(self) -> None:
        if self.size.attention != "cached":
            raise ValueError("in joint attention the template's tokens see the search region: they cannot be cached")


def project(attention: nn.Module, x: Float[Tensor, "b t width"]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [b, heads, t, d] of a timm attention on normed tokens."""
    assert isinstance(attention, Attention)
    parts = attention.qkv(x).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
    return attention.q_norm(q), attention.k_norm(k), v


def mix(q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b t width"]:
    """Values by attention, the heads side by side."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _apart(block: Block, x: Tensor, template: int) -> Tensor:
    """A block in which the first `template` tokens see only each other, the rest all: two attentions, no mask, so that
    nothing is computed that a mask would throw away."""
    q, k, v = project(block.attn, block.norm1(x))
    first = mix(q[:, :, :template], k[:, :, :template], v[:, :, :template])
    return _finish(block, x, torch.cat([first, mix(q[:, :, template:], k, v)], dim=1))


def _matched(x: Tensor, template: int) -> Float[Tensor, "b s n"]:
    return similarities(directions(x[:, :template]), directions(x[:, template:]))


def _finish(block: Block, x: Tensor, mixed: Tensor) -> Tensor:
    return _transformed(block, _attended(block, x, mixed))


def _attended(block: Block, x: Tensor, mixed: Tensor) -> Tensor:
    attention = cast(Attention, block.attn)
    return x + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(mixed))))


def _transformed(block: Block, x: Tensor) -> Tensor:
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def initialise_from(model: OneStreamTracker, weights: Mapping[str, Tensor], source: VitConfig) -> tuple[KeyReport, str]:
    """Give a tracker the weights of an encoder; positions are interpolated bicubically to both crops, as published.

    Args:
        model: its head and nothing else stays as it is.
        weights: the encoder's, under timm's names.
        source: the encoder that they belong to.

    Returns:
        What became of each key, and a sentence on what the shapes do not show: another number of heads, other positions.

    Raises:
        UserError: if the encoder is of another size.
    """
    table = weights["pos_embed"][:, source.prefix :]
    own = {f"vit.{key}": value for key, value in weights.items() if key != "pos_embed"}
    for name, side in zip(_POSITIONS, (model.size.template_grid, model.size.search_grid), strict=True):
        own[name] = interpolate_positions(table, source.grid, side)
    report = load_weights(model, own, may_drop=("vit.cls_token", "vit.head", "vit.fc_norm"), may_miss=("head.",))
    sides = f"{model.size.template_grid} x {model.size.template_grid} and {model.size.search_grid} x {model.size.search_grid}"
    notes = [f"positions of {source.grid[0]} x {source.grid[1]} patches interpolated to {sides}"]
    heads = model.size.encoder.heads
    if source.heads != heads:
        notes.append(
            f"ATTENTION: these weights were trained with {source.heads} heads, the tracker has {heads}; the shapes are the "
            "same, the features are not"
        )
    return report, "; ".join(notes)


def interpolate_positions(
    table: Float[Tensor, "1 n width"], grid: tuple[int, int], side: int
) -> Float[Tensor, "1 m width"]:
    """Positions of a patch grid for a square one of `side` by `side`, bicubic without smoothing, as OSTrack does."""
    if grid == (side, side):
        return table.detach().clone()
    picture = table.detach().transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(picture, size=(side, side), mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)
