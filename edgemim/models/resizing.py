"""Weights for one size of image become weights for another: positions are interpolated, all else stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor

from edgemim.models.sizes import EncoderSize, HieraConfig

_TABLE = "relative_position_bias_table"


def resize_positions(weights: Mapping[str, Tensor], source: EncoderSize, target: EncoderSize) -> dict[str, Tensor]:
    """An encoder's weights with positions for another image size: absolute ones bicubic over the grid, as
    arXiv 2010.11929 (section 3.2) does for fine-tuning, tables of offsets as BEiT's published code does.

    Args:
        weights: under timm's names.
        source: the encoder that they belong to.
        target: the same encoder for another `image_size`.
    """
    if source.image_size == target.image_size:
        return dict(weights)
    old, new = _position_grid(source), _position_grid(target)
    resized: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name == "pos_embed":
            value = resample_abs_pos_embed(value, list(new), list(old), num_prefix_tokens=source.prefix)
        elif name.endswith(_TABLE):
            entries = (2 * new[0] - 1) * (2 * new[1] - 1) + 3
            value = cast(Tensor, resize_rel_pos_bias_table(value, new, (entries, value.shape[1])))
        resized[name] = value
    return resized


def _position_grid(config: EncoderSize) -> tuple[int, int]:
    """Rows and columns of what has a position: patches, or a hierarchical encoder's embedded tokens."""
    if isinstance(config, HieraConfig):
        side = config.image_size // config.patch_stride
        return side, side
    return config.grid
