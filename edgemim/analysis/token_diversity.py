"""How diverse the tokens of a teacher are within an image: by their cosines and by their effective rank, as is and centred.

Img2Vec (arXiv 2304.12535) names the attribute: token diversity "measures the feature dissimilarity among different
tokens", and teachers that have more of it make better targets. Its formula is not in the abstract and no code is
released; the one below is ours. With u_i = f_i / |f_i| for the N tokens of an image,

    diversity = 1 - mean over pairs i != j of u_i . u_j = 1 - (|sum_i u_i|^2 - sum_i |u_i|^2) / (N (N - 1)),

0 where all tokens are parallel, at most N / (N - 1). It depends on what all features share: after a ReLU no cosine is
negative, and one large component makes everything alike. So it is given twice: of the features as they are, and less
the mean token of the data set. (Less the mean token of the image itself, every teacher comes out near 1.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from edgemim.data.loader import Batch
from edgemim.edge.report import COLOURS
from edgemim.errors import UserError

_HELD_BYTES = 2**30
KINDS = ("raw", "centred")


@dataclass(frozen=True)
class Spread:
    """A figure over images."""

    mean: float
    sd: float
    """Sample deviation over images."""
    values: tuple[float, ...]
    """One an image, in the order of the sample."""

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Mean and deviation of the given figures."""
        each = np.fromiter(values, np.float64)
        return Spread(float(each.mean()), float(each.std(ddof=1)) if len(each) > 1 else 0.0, tuple(each.tolist()))


@dataclass(frozen=True)
class Diversity:
    """Token diversity and effective rank of one teacher, each 'raw' and 'centred'."""

    tokens: int
    channels: int
    diversity: dict[str, Spread]
    effective_rank: dict[str, Spread]

    def as_dict(self, *, values: bool = False) -> dict[str, Any]:
        """Plain values; those of each image only where asked for."""
        found: dict[str, Any] = {"tokens": self.tokens, "channels": self.channels}
        for name in ("diversity", "effective_rank"):
            for kind, spread in getattr(self, name).items():
                entry = {"mean": spread.mean, "sd": spread.sd, "images": len(spread.values)}
                found.setdefault(name, {})[kind] = entry | ({"values": list(spread.values)} if values else {})
        return found


def token_diversity(features: Float[Tensor, "b n c"]) -> Float[Tensor, " b"]:
    """1 - mean cosine of two different tokens of an image; a token of zeros is at right angles to all."""
    directions = F.normalize(features.double(), dim=-1)
    count = directions.shape[1]
    together, own = directions.sum(1).square().sum(-1), directions.square().sum((1, 2))
    return 1 - (together - own) / (count * (count - 1))


def effective_rank(features: Float[Tensor, "b n c"]) -> Float[Tensor, " b"]:
    """exp of the entropy of the normalised singular values of an image's unit-length tokens; 1 to min(n, c).

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007. Unit length, so that it judges the directions that
    `token_diversity` compares.
    """
    directions = F.normalize(features.double(), dim=-1)
    if directions.shape[1] > directions.shape[2]:
        directions = directions.transpose(1, 2)
    # The Gram matrix of the shorter side has the squared singular values.
    squares = torch.linalg.eigvalsh(directions @ directions.transpose(1, 2))
    singular = squares.clamp(min=0).sqrt()
    share = singular / singular.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.special.entr(share).sum(-1).exp()


def measure_diversity(features: Callable[[], Iterable[Float[Tensor, "b n c"]]]) -> Diversity:
    """Both figures of every image.

    Args:
        features: gives a teacher's features batch by batch, the same each time it is called. It is called twice where
            they would take more than 1 GiB: the mean comes before what is centred by it.

    Raises:
        UserError: if a feature is not finite, or an image has a single token.
    """
    batches = _Held(features)
    total, count = torch.zeros(()), 0
    for part in batches:
        if not torch.isfinite(part).all():
            raise UserError("the teacher's features are not finite; its weights are damaged or do not fit")
        if part.shape[1] < 2:
            raise UserError("an image has a single token here; give a smaller --patch-size or a larger --image-size")
        total = total + part.double().sum((0, 1))
        count += part.shape[0] * part.shape[1]
    mean = (total / count).float()
    found: dict[tuple[str, str], list[float]] = {}
    shape = (0, 0)
    for part in batches:
        shape = (part.shape[1], part.shape[2])
        for kind, tokens in (("raw", part), ("centred", part - mean)):
            found.setdefault(("diversity", kind), []).extend(token_diversity(tokens).tolist())
            found.setdefault(("effective_rank", kind), []).extend(effective_rank(tokens).tolist())
    spreads = {name: {kind: Spread.of(found[name, kind]) for kind in KINDS} for name in ("diversity", "effective_rank")}
    return Diversity(*shape, spreads["diversity"], spreads["effective_rank"])


@torch.no_grad()
def teacher_features(
    teacher: torch.nn.Module, batches: Iterable[Batch], device: torch.device
) -> Iterator[Float[Tensor, "b n c"]]:
    """A teacher's float32 features of the images of a loader, on the CPU."""
    for batch in batches:
        yield teacher(batch.images.to(device).float() / 255).float().cpu()


def ranking(found: dict[str, Diversity], kind: str) -> list[str]:
    """Names from the most to the least diverse; `kind` is raw or centred."""
    return sorted(found, key=lambda name: -found[name].diversity[kind].mean)


def plot_diversity(found: dict[str, Diversity]) -> Figure:
    """Bars of diversity and of effective rank, raw beside centred, with the deviation over images as whiskers.

    Teachers stand in the order of centred diversity, from the top.
    """
    names = ranking(found, "centred")
    figure = Figure(figsize=(9.6, 1.3 + 0.52 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, name, label in (
        (left, "diversity", "token diversity (1 - mean cosine)"),
        (right, "effective_rank", "effective rank of an image's tokens"),
    ):
        for offset, kind, colour in ((-0.19, "raw", COLOURS[5]), (0.19, "centred", COLOURS[0])):
            spreads: Sequence[Spread] = [getattr(found[teacher], name)[kind] for teacher in names]
            axes.barh(
                np.arange(len(names)) + offset,
                [spread.mean for spread in spreads],
                height=0.36,
                xerr=[spread.sd for spread in spreads],
                color=colour,
                label=kind,
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
            )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5)
        axes.set_xlabel(label, fontsize=9)
        axes.set_xlim(left=0)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8.5)
    return figure


class _Held:
    """Batches that can be gone through again: kept in memory where they fit, else made anew."""

    def __init__(self, make: Callable[[], Iterable[Tensor]]) -> None:
        self._make = make
        self._kept: list[Tensor] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Tensor] | None = []
        size = 0
        for part in self._make():
            size += part.nbytes
            if kept is not None:
                kept = [*kept, part] if size <= _HELD_BYTES else None
            yield part
        self._kept = kept
