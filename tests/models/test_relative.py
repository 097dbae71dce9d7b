"""The encoder with relative positions: whole images as timm's own forward, visible patches by their own offsets."""

from __future__ import annotations

import torch
from tiny_training import NORMALIZATION, mask_of, pixels

from edgemim.models.encoder import TokenMask
from edgemim.models.relative import RelativeEncoder
from edgemim.models.sizes import RelativeVitConfig

SIZE = RelativeVitConfig(width=24, depth=3, heads=3, patch_size=8, image_size=32)


def encoder() -> RelativeEncoder:
    torch.manual_seed(0)
    made = RelativeEncoder(SIZE)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made


def test_a_whole_image_is_timms_forward() -> None:
    made, x = encoder(), NORMALIZATION.apply(pixels(2))
    torch.testing.assert_close(made(x).last, made.vit.forward_features(x), rtol=1e-5, atol=1e-5)
    everything = TokenMask.of(torch.zeros(2, 16, dtype=torch.bool))
    torch.testing.assert_close(made(x, everything).last, made(x).last, rtol=1e-4, atol=1e-5)


def test_visible_patches_attend_by_their_own_offsets() -> None:
    """Dropping patches equals a full pass in which no token attends to them."""
    made, x, mask = encoder(), NORMALIZATION.apply(pixels(2)), mask_of(2)
    hidden = torch.cat([torch.zeros(2, 1, dtype=torch.bool), mask.masked], dim=1)
    bias = made.vit.rel_pos_bias().reshape(1, 3, 17, 17).expand(2, -1, -1, -1)  # pyright: ignore[reportCallIssue]
    closed = bias.masked_fill(hidden[:, None, None, :], float("-inf"))
    tokens = made(x, taps=[0]).tokens[0]
    for block in made.vit.blocks:
        tokens = block(tokens, shared_rel_pos_bias=closed)
    kept = torch.cat([torch.zeros(2, 1, dtype=torch.long), mask.visible + 1], dim=1)
    expected = tokens.gather(1, kept.unsqueeze(-1).expand(-1, -1, 24))
    torch.testing.assert_close(made(x, mask).tokens[3], expected, rtol=1e-4, atol=1e-5)
