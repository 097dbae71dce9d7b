"""Minibatch linear CKA: how alike two networks represent the same images, layer by layer.

Centred kernel alignment of Kornblith et al. (arXiv 1905.00414) from unbiased estimates of HSIC that are averaged over
batches before they are divided (Nguyen et al., arXiv 2010.15327), as the lightweight study has it (arXiv 2205.14443): one
sample is one image, its patch tokens and channels in one vector. With Gram matrices K and L of n images whose diagonals
are zero,

    HSIC(K, L) = (tr(K L) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 1'K L 1 / (n - 2)) / (n (n - 3)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from edgemim.errors import UserError

LEAST_IMAGES = 4
"""What a batch needs: the estimate divides by n - 3."""


def gram_matrix(features: Float[Tensor, "b n c"]) -> Float[Tensor, "b b"]:
    """Inner products of images, float64, the diagonal zero."""
    rows = features.flatten(1).double()
    return (rows @ rows.T).fill_diagonal_(0)


def unbiased_hsic(k: Float[Tensor, "*p b b"], other: Float[Tensor, "*p b b"]) -> Float[Tensor, "*p"]:
    """HSIC_1 of Gram matrices with zero diagonals (Song et al. 2012, equation 5); it may come out negative.

    Raises ValueError for fewer than four images.
    """
    n = k.shape[-1]
    if n < LEAST_IMAGES:
        raise ValueError(f"HSIC needs at least {LEAST_IMAGES} images in a batch, here are {n}")
    trace = (k * other).sum((-2, -1))
    total = k.sum((-2, -1)) * other.sum((-2, -1)) / ((n - 1) * (n - 2))
    crossed = (k.sum(-1) * other.sum(-1)).sum(-1) * 2 / (n - 2)
    return (trace + total - crossed) / (n * (n - 3))


class MinibatchCka:
    """Adds up HSIC over batches for every pair of layers; every batch has the same weight, whatever its size.

    Attributes:
        sums: [layers, layers of the other, 3], float64: HSIC(K, K), HSIC(K, L), HSIC(L, L).
    """

    def __init__(self) -> None:
        self.sums: Float[Tensor, "p q 3"] | None = None
        self.batches = 0

    def update(self, first: Sequence[Float[Tensor, "b n c"]], second: Sequence[Float[Tensor, "b m d"]]) -> None:
        """Add the features of the same images at the layers of both networks.

        Raises:
            UserError: if a feature is not finite.
            ValueError: for fewer than four images.
        """
        for layers, which in ((first, "first"), (second, "second")):
            for number, features in enumerate(layers):
                if not torch.isfinite(features).all():
                    raise UserError(
                        f"the features of the {which} subject are not finite at its layer {number}; its weights are damaged"
                    )
        k = torch.stack([gram_matrix(features) for features in first])
        other = torch.stack([gram_matrix(features) for features in second])
        own, others = unbiased_hsic(k, k), unbiased_hsic(other, other)
        crossed = torch.stack([unbiased_hsic(matrix.expand_as(other), other) for matrix in k])
        terms = torch.stack([own[:, None].expand_as(crossed), crossed, others.expand_as(crossed)], dim=-1)
        self.sums = terms if self.sums is None else self.sums + terms
        self.batches += 1

    def compute(self) -> Float[Tensor, "p q"]:
        """CKA of every pair; 1 for equal layers, about 0 for unrelated ones; NaN where a layer is the same for all images."""
        if self.sums is None:
            raise ValueError("no batch was given")
        own, crossed, others = self.sums.unbind(-1)
        return crossed / (own * others).sqrt()


def plot_cka(values: np.ndarray, names: tuple[str, str], layers: tuple[Sequence[str], Sequence[str]]) -> Figure:
    """A heat map, [first's layers, second's layers]; the first layers stand at the bottom left, as in the papers."""
    rows, columns = values.shape
    figure = Figure(figsize=(2.6 + 0.42 * columns, 1.9 + 0.42 * rows), layout="constrained")
    axes = figure.subplots()
    # Estimates may leave [0, 1] by a little, and low values are the ones that are looked for.
    picture = axes.imshow(values, cmap="magma", vmin=0, vmax=1, origin="lower", aspect="equal")
    if max(rows, columns) <= 16:
        for (row, col), value in np.ndenumerate(values):
            shade = "black" if value > 0.65 else "white"
            axes.text(col, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=shade)
    axes.set_xticks(range(columns), list(layers[1]), rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
    axes.set_yticks(range(rows), list(layers[0]), fontsize=7.5)
    axes.set_xlabel(names[1], fontsize=9)
    axes.set_ylabel(names[0], fontsize=9)
    figure.colorbar(picture, ax=axes, fraction=0.05, pad=0.02, label="linear CKA")
    return figure
