"""What attention heads look at: how far, how broadly, and whether it depends on the query.

Attention distance and entropy as in the lightweight study (arXiv 2205.14443): class tokens leave before the softmax, so
that each query's attention over the patches sums to 1. Normalised mutual information of queries and keys as in Park et al.
(arXiv 2305.00729, section 2): 0 where every query attends alike (attention collapse), 1 where each has a key of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from edgemim.edge.report import COLOURS
from edgemim.errors import UserError

PUBLISHED_PATCH_PX = 14.0
"""The study multiplies grid distances by 14, though its patches have 16 pixels."""
_LOG_FLOOR = 1e-6


def patch_distances(grid: tuple[int, int], patch_px: float) -> Float[Tensor, "n n"]:
    """Euclidean distances between the centres of patches in pixels, float64, row-major."""
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    places = torch.cartesian_prod(rows, columns) * patch_px
    return torch.linalg.vector_norm(places[:, None] - places[None], dim=-1)


def patch_attention(logits: Float[Tensor, "b h t t"], prefix: int) -> Float[Tensor, "b h n n"]:
    """Softmax over the patches alone, float64; logits may lack a constant of each row. Raises UserError if not finite."""
    if not torch.isfinite(logits).all():
        raise UserError("the attention logits are not finite; the subject's weights are damaged")
    return logits[:, :, prefix:, prefix:].double().softmax(-1)


def attention_distance(attention: Float[Tensor, "b h n n"], distances: Float[Tensor, "n n"]) -> Float[Tensor, "b h"]:
    """Distance to what is attended to, weighted by attention, mean over queries, in the unit of `distances`."""
    return (attention * distances).sum(-1).mean(-1)


def attention_entropy(attention: Float[Tensor, "b h n n"]) -> Float[Tensor, "b h"]:
    """-sum p ln(p + 1e-6), mean over queries, in nats: 0 to ln n."""
    return -(attention * (attention + _LOG_FLOOR).log()).sum(-1).mean(-1)


def attention_nmi(attention: Float[Tensor, "b h n n"]) -> Float[Tensor, "b h"]:
    """Mutual information of a uniform query and its key over sqrt(H(query) H(key)): 0 to 1."""
    queries = attention.shape[-2]
    key = attention.mean(-2)
    key_entropy = torch.special.entr(key).sum(-1)
    information = key_entropy - torch.special.entr(attention).sum(-1).mean(-1)
    scale = (math.log(queries) * key_entropy).sqrt()
    # All queries on one key: nothing to be informed about.
    return torch.where(scale > 0, information.clamp(min=0) / scale.clamp(min=1e-12), 0.0)


@dataclass(frozen=True)
class Kind:
    """A figure of attention: its name in results, what the picture calls it, and its unit."""

    name: str
    title: str


KINDS = (
    Kind("distance_px", "attention distance (px)"),
    Kind("entropy_nats", "attention entropy (nats)"),
    Kind("nmi", "NMI of query and key"),
)


class AttentionStatistics:
    """Collects the figures of one block over batches.

    Args:
        distances: [n, n] between patches, of `patch_distances`.
        prefix: class tokens in front of the patches.
    """

    def __init__(self, distances: Float[Tensor, "n n"], prefix: int) -> None:
        self._distances, self._prefix = distances, prefix
        self._batches: dict[str, list[Float[Tensor, "b h"]]] = {kind.name: [] for kind in KINDS}

    def update(self, logits: Float[Tensor, "b h t t"]) -> None:
        """Add a batch's pre-softmax logits. Raises UserError if they are not finite."""
        attention = patch_attention(logits, self._prefix)
        self._batches["distance_px"].append(attention_distance(attention, self._distances.to(attention.device)))
        self._batches["entropy_nats"].append(attention_entropy(attention))
        self._batches["nmi"].append(attention_nmi(attention))

    def mean(self, kind: str, *, equal_batches: bool = False) -> Float[Tensor, " h"]:
        """Mean of a figure for each head over images, or as published over batches, each with the same weight."""
        batches = self._batches[kind]
        return torch.stack([b.mean(0) for b in batches]).mean(0) if equal_batches else torch.cat(batches).mean(0)

    def deviation(self, kind: str) -> Float[Tensor, " h"]:
        """Sample deviation over images for each head; 0 for a single image."""
        values = torch.cat(self._batches[kind])
        return values.std(0) if len(values) > 1 else torch.zeros_like(values[0])

    def as_dict(self, *, equal_batches: bool = False) -> dict[str, Any]:
        """Plain values: of each figure the heads' means, their deviations over images, and the mean of all heads."""
        found: dict[str, Any] = {}
        for kind in KINDS:
            means = self.mean(kind.name, equal_batches=equal_batches)
            deviations = self.deviation(kind.name).tolist()
            found[kind.name] = {"mean": float(means.mean()), "heads": means.tolist(), "sd_over_images": deviations}
        return found


def plot_attention(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Figure:
    """A column of panels for each figure: a dot for each head at its block, a line through the blocks' means."""
    depth = max(max(blocks) for blocks in found.values())
    figure = Figure(figsize=(3.9 * len(KINDS), 3.6), layout="constrained")
    for kind, axes in zip(KINDS, figure.subplots(1, len(KINDS)), strict=True):
        for index, (name, blocks) in enumerate(found.items()):
            colour = COLOURS[index % len(COLOURS)]
            shift = (index - (len(found) - 1) / 2) * 0.5 / len(found)
            numbers = np.asarray(list(blocks))
            heads = [np.asarray(block[kind.name]["heads"]) for block in blocks.values()]
            xs = np.concatenate([np.full(len(h), n + shift) for n, h in zip(numbers, heads, strict=True)])
            axes.plot(xs, np.concatenate(heads), "o", color=colour, markersize=4, alpha=0.55, markeredgewidth=0)
            axes.plot(numbers + shift, [h.mean() for h in heads], "-", color=colour, linewidth=1.6, label=name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5)
        axes.set_xticks(_ticks(depth))
        axes.set_xlabel("block", fontsize=9)
        axes.set_ylabel(kind.title, fontsize=9)
        # From zero, with room for the dots at the top.
        largest = max(max(block[kind.name]["heads"]) for blocks in found.values() for block in blocks.values())
        axes.set_ylim(0, 1.08 * largest if largest > 0 else 1)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(3, len(labels)), frameon=False, fontsize=8.5)
    return figure


def _ticks(depth: int) -> Sequence[int]:
    step = 1 if depth <= 12 else math.ceil(depth / 12)
    return range(1, depth + 1, step)
