"""Effective rank and token diversity of an image's tokens after every block, as they are and less the sample's mean token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from edgemim.analysis.token_diversity import KINDS, Diversity, Spread, effective_rank, token_diversity
from edgemim.edge.report import COLOURS
from edgemim.errors import UserError

_FIGURES = {"effective_rank": effective_rank, "diversity": token_diversity}


def measure_layers(layers: Callable[[], Iterable[Sequence[Float[Tensor, "b n c"]]]]) -> list[Diversity]:
    """Both figures of every image at every layer.

    Args:
        layers: gives the tokens at all layers batch by batch, the same each time; called twice, the means come first.

    Raises:
        UserError: if a feature is not finite.
    """
    sums: list[Tensor] = []
    counts: list[int] = []
    for batch in layers():
        if not all(bool(torch.isfinite(tokens).all()) for tokens in batch):
            raise UserError("the features are not finite; the subject's weights are damaged")
        totals, sizes = [t.double().sum((0, 1)) for t in batch], [t.shape[0] * t.shape[1] for t in batch]
        sums = [a + b for a, b in zip(sums, totals, strict=True)] if sums else totals
        counts = [a + b for a, b in zip(counts, sizes, strict=True)] if counts else sizes
    means = [(total / count).float() for total, count in zip(sums, counts, strict=True)]
    found: list[dict[tuple[str, str], list[float]]] = [{} for _ in means]
    shapes = [(0, 0)] * len(means)
    for batch in layers():
        for number, (tokens, mean) in enumerate(zip(batch, means, strict=True)):
            shapes[number] = (tokens.shape[1], tokens.shape[2])
            for kind, part in zip(KINDS, (tokens, tokens - mean), strict=True):
                for name, figure in _FIGURES.items():
                    found[number].setdefault((name, kind), []).extend(figure(part).tolist())
    return [
        Diversity(
            *shape,
            diversity={kind: Spread.of(values["diversity", kind]) for kind in KINDS},
            effective_rank={kind: Spread.of(values["effective_rank", kind]) for kind in KINDS},
        )
        for shape, values in zip(shapes, found, strict=True)
    ]


def plot_layers(found: Mapping[str, Sequence[Diversity]]) -> Figure:
    """Lines through the layers' means over images, dashed as the features are, solid centred."""
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    titles = {"effective_rank": "effective rank of an image's tokens", "diversity": "token diversity (1 - mean cosine)"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for index, (subject, layers) in enumerate(found.items()):
            for kind, style in zip(KINDS, ("--", "-"), strict=True):
                spreads = [getattr(layer, name)[kind] for layer in layers]
                mean, colour = [spread.mean for spread in spreads], COLOURS[index % len(COLOURS)]
                axes.plot(range(len(mean)), mean, style, color=colour, linewidth=1.6, label=f"{subject}, {kind}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer (of a transformer: after block, 0 the embeddings)", fontsize=9)
        axes.set_ylabel(title, fontsize=9)
        axes.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=8.5)
    return figure
