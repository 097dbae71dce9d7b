"""Vision transformers with two heads: pooled patch tokens for the labels, the class token for a teacher's answers.

DeiT (arXiv 2012.12877) adds a token for the teacher; the lightweight study (arXiv 2205.14443) gives it the class token, which
pooling leaves without work.
"""

from __future__ import annotations

from typing import Any, cast

from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edgemim.models.relative import RelativeVit


class _TwoHeads(nn.Module):
    """Adds `dist_norm` and `head_dist` to a network that pools its patch tokens; the names are timm's and the study's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        width, classes = cast(int, self.embed_dim), cast(int, self.num_classes)
        self.dist_norm = nn.LayerNorm(width, eps=1e-6)
        self.head_dist = nn.Linear(width, classes)
        trunc_normal_(self.head_dist.weight, std=0.02)
        nn.init.zeros_(self.head_dist.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of normalised images: the mean of both heads'; in training (of the labels' head, of the teacher's)."""
        whole = cast(Any, self)
        tokens = whole.forward_features(x)
        logits, told = whole.forward_head(tokens), self.head_dist(self.dist_norm(tokens[:, 0]))
        return (logits, told) if self.training else (logits + told) / 2


class DistilledVit(_TwoHeads, VisionTransformer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """timm's `VisionTransformer` with a head for the teacher."""


class DistilledRelativeVit(_TwoHeads, RelativeVit):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A vision transformer with relative positions and a head for the teacher."""
