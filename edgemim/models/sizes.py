"""Named sizes of encoders: each a configuration that builds itself."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from edgemim.config import Config, Presets

Offsets = Literal["block", "shared", "both"]


class VitConfig(Config):
    """A plain vision transformer: pre-norm blocks, class token, qkv bias, LayerNorm eps 1e-6."""

    name: Literal["vit"] = "vit"
    """The family."""
    width: int = pydantic.Field(default=192, ge=1)
    """Channels of a token."""
    depth: int = pydantic.Field(default=12, ge=1)
    """Number of blocks."""
    heads: int = pydantic.Field(default=12, ge=1)
    """Attention heads (the lightweight study uses 12 even at width 192; timm's vit_tiny has 3)."""
    patch_size: int = pydantic.Field(default=16, ge=1)
    """Side of a patch in pixels."""
    image_size: int = pydantic.Field(default=224, ge=1)
    """Side of the square input in pixels."""
    mlp_ratio: float = pydantic.Field(default=4.0, gt=0)
    """Hidden width of the MLP over the token width."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> VitConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4, which sine-cosine positions need")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def tokens(self) -> int:
        """Number of patches of an image."""
        return self.grid[0] * self.grid[1]


class RelativeVitConfig(VitConfig):
    """A vision transformer whose attention has a learnt bias for each offset between two patches and each head.

    The defaults are the lightweight study's for fine-tuning (arXiv 2205.14443). BEiT (arXiv 2106.08254) and SimMIM
    (arXiv 2111.09886) share one table, have no absolute positions, no key bias, and LayerScale 0.1.
    """

    name: Literal["relative_vit"] = "relative_vit"  # pyright: ignore[reportIncompatibleVariableOverride]
    """The family."""
    offsets: Offsets = "block"
    """A table of offsets in each block, one shared by all, or both."""
    absolute_positions: bool = True
    """Keep the absolute positions of a plain vision transformer too."""
    key_bias: bool = True
    """Keys have a bias, as in a plain vision transformer; BEiT's have none."""
    layer_scale: float | None = pydantic.Field(default=None, gt=0)
    """Initial scale of what a block adds; none by default."""


SIZES: dict[str, Config] = {
    # The lightweight study's own sizes: 5,717,416 parameters with a 1000-way head, and its wider sibling.
    "vit_tiny": VitConfig(),
    "vit_small": VitConfig(width=384),
    # The sizes of MAE's, DeepMIM's and MFF's papers; 12 and 16 heads as published.
    "vit_base": VitConfig(width=768),
    "vit_large": VitConfig(width=1024, depth=24, heads=16),
    # MIRL's deep encoders (arXiv 2309.14136): 96.6, 171.6 and 341.7 million parameters with a 1000-way head.
    "vit_s_54": VitConfig(width=384, depth=54),
    "vit_b_24": VitConfig(width=768, depth=24),
    "vit_b_48": VitConfig(width=768, depth=48),
    # The same depth and width on small images, for CIFAR- and Tiny-ImageNet-like sets.
    "vit_tiny_64": VitConfig(patch_size=8, image_size=64),
    "vit_tiny_32": VitConfig(patch_size=4, image_size=32),
    # Minutes on a CPU: quick start and tests.
    "vit_micro": VitConfig(width=96, depth=4, heads=3, patch_size=8, image_size=64),
    "vit_micro_32": VitConfig(width=96, depth=4, heads=3, patch_size=4, image_size=32),
    # With relative positions: the lightweight study's fine-tuned form, and SimMIM's ViT-B.
    "vit_tiny_rel": RelativeVitConfig(),
    "vit_small_rel": RelativeVitConfig(width=384),
    "vit_base_rel_shared": RelativeVitConfig(
        width=768, offsets="shared", absolute_positions=False, key_bias=False, layer_scale=0.1
    ),
    "vit_nano_rel": RelativeVitConfig(width=48, depth=2, heads=3, patch_size=8, image_size=32),
    "vit_nano": VitConfig(width=48, depth=2, heads=3, patch_size=8, image_size=32),
}


def _named(value: object) -> object:
    """A mapping that names no family describes a plain vision transformer."""
    return {"name": "vit", **value} if isinstance(value, dict) else value


EncoderConfig = Annotated[
    VitConfig | RelativeVitConfig,
    pydantic.Field(discriminator="name"),
    pydantic.BeforeValidator(_named),
    Presets(SIZES),
]
