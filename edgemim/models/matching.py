"""Matching: how alike each search token is to each template token, told to the head beside the features.

Pixel-wise correlation of Alpha-Refine, arXiv 2012.06815, section 3.2, between the tokens of a one-stream tracker. With
attention alone a tracker must learn to compare from millions of pairs; the tokens of a pre-trained encoder are alike
where the pictures are, so that thousands do. A cosine of tokens from which their crop's mean was taken: what all tokens
of a picture share says nothing of the place.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_SCALE = 3.0
"""Brings cosines near the spread of normed features."""


def directions(tokens: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
    """Tokens less their crop's mean, of length 1."""
    return F.normalize(tokens - tokens.mean(dim=1, keepdim=True), dim=-1)


def similarities(template: Float[Tensor, "b n width"], search: Float[Tensor, "b s width"]) -> Float[Tensor, "b s n"]:
    """How alike each search token is to each template token, -3 to 3; both as `directions` gives them."""
    return _SCALE * (search @ template.transpose(1, 2))
