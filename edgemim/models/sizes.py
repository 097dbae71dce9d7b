"""Named sizes of encoders: each a configuration that builds itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from edgemim.config import Config, Presets, load_yaml

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

    @property
    def prefix(self) -> int:
        """Class tokens in front of the patches."""
        return 1

    @property
    def unit(self) -> int:
        """Side in patches of the square that is hidden or seen as one."""
        return 1

    @property
    def hierarchical(self) -> bool:
        """Whether tokens grow wider and fewer from stage to stage."""
        return False

    def width_at(self, tap: int) -> int:
        """Channels of a token after block `tap`; 0 stands for the embeddings."""
        return self.width

    def heads_at(self, block: int) -> int:
        """Attention heads of block `block`."""
        return self.heads

    def split_at(self, tap: int) -> int:
        """Side of the square of tokens that a patch still consists of after block `tap`."""
        return 1

    def distils(self, block: int) -> bool:
        """Whether block `block` has one attention map over all tokens, that a teacher's can be matched with."""
        return 1 <= block <= self.depth

    def as_classifier(self) -> VitConfig:
        """The sizes that a classifier is made in: the same."""
        return self


class RelativePositions(Config):
    """Learnt biases of attention, one for each offset between two patches and each head (BEiT, arXiv 2106.08254).

    The defaults are the lightweight study's for fine-tuning (arXiv 2205.14443).
    """

    offsets: Offsets = "block"
    """A table of offsets in each block, one shared by all, or both."""
    absolute_positions: bool = True
    """Keep the absolute positions of a plain vision transformer too."""
    key_bias: bool = True
    """Keys have a bias, as in a plain vision transformer; BEiT's have none."""

    def added_to(self, plain: VitConfig) -> RelativeVitConfig:
        """A plain vision transformer with these positions."""
        return RelativeVitConfig.model_validate({**plain.model_dump(exclude={"name"}), **self.model_dump()})


class RelativeVitConfig(RelativePositions, VitConfig):
    """A vision transformer with relative positions.

    BEiT (arXiv 2106.08254) and SimMIM (arXiv 2111.09886) share one table, have no absolute positions, no key bias, and
    LayerScale 0.1.
    """

    name: Literal["relative_vit"] = "relative_vit"  # pyright: ignore[reportIncompatibleVariableOverride]
    """The family."""
    layer_scale: float | None = pydantic.Field(default=None, gt=0)
    """Initial scale of what a block adds; none by default."""


class HieraConfig(Config):
    """A hierarchical vision transformer of four stages (Hiera, arXiv 2306.00989): each doubles width and heads, and the
    first `q_pool` of the last three begin by halving the grid. Whole mask units of 8 x 8 embedded tokens are hidden.

    The defaults are the lightweight study's Hiera-Tiny (arXiv 2404.12210): 6,694,966 parameters with a 1000-way head.
    A patch is what one token stands for at the end: 16 pixels while pre-training (`q_pool` 2), 32 as a classifier (3).
    """

    name: Literal["hiera"] = "hiera"
    """The family."""
    embed_dim: int = pydantic.Field(default=46, ge=1)
    """Channels of a token in the first stage."""
    first_heads: int = pydantic.Field(default=1, ge=1)
    """Attention heads in the first stage."""
    stages: tuple[int, int, int, int] = (1, 2, 7, 2)
    """Blocks of each stage."""
    q_pool: int = pydantic.Field(default=2, ge=1, le=3)
    """Stages that halve the grid while pre-training; fine-tuning takes 3."""
    patch_stride: int = pydantic.Field(default=4, ge=1)
    """Pixels from one embedded token to the next."""
    patch_kernel: int = pydantic.Field(default=7, ge=1)
    """Side in pixels of the embedding convolution; odd."""
    image_size: int = pydantic.Field(default=224, ge=1)
    """Side of the square input in pixels."""
    mlp_ratio: float = pydantic.Field(default=4.0, gt=0)
    """Hidden width of the MLP over the token width."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> HieraConfig:
        unit = 8 * self.patch_stride
        if self.image_size % unit:
            raise ValueError(f"image_size {self.image_size} is not a multiple of the mask unit's {unit} pixels")
        if self.embed_dim % self.first_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of first_heads {self.first_heads}")
        if min(self.stages) < 1:
            raise ValueError(f"'stages' {list(self.stages)}: each needs at least one block")
        if self.patch_kernel % 2 == 0 or self.patch_kernel < self.patch_stride:
            raise ValueError(f"patch_kernel {self.patch_kernel} must be odd and no smaller than patch_stride")
        return self

    @property
    def width(self) -> int:
        """Channels of a token at the end."""
        return self.embed_dim * 8

    @property
    def heads(self) -> int:
        """Attention heads of the last stage."""
        return self.first_heads * 8

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.stages)

    @property
    def patch_size(self) -> int:
        """Side in pixels of what one token stands for at the end."""
        return self.patch_stride * 2**self.q_pool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def tokens(self) -> int:
        """Number of patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix(self) -> int:
        """Class tokens in front of the patches: none."""
        return 0

    @property
    def unit(self) -> int:
        """Side in patches of a mask unit, the square that is hidden or seen as one."""
        return 2 ** (3 - self.q_pool)

    @property
    def hierarchical(self) -> bool:
        """Whether tokens grow wider and fewer from stage to stage."""
        return True

    @property
    def stage_ends(self) -> tuple[int, int, int, int]:
        """The last block of each stage, counted from 1."""
        first, second, third, fourth = self.stages
        return first, first + second, first + second + third, first + second + third + fourth

    def stage_at(self, tap: int) -> int:
        """Stage of block `tap`, counted from 0; the embeddings (0) count to the first."""
        return next(stage for stage, end in enumerate(self.stage_ends) if tap <= end)

    def width_at(self, tap: int) -> int:
        """Channels of a token after block `tap`; 0 stands for the embeddings."""
        return self.embed_dim * 2 ** self.stage_at(tap)

    def heads_at(self, block: int) -> int:
        """Attention heads of block `block`."""
        return self.first_heads * 2 ** self.stage_at(block)

    def split_at(self, tap: int) -> int:
        """Side of the square of tokens that a patch still consists of after block `tap`."""
        return 2 ** max(0, self.q_pool - self.stage_at(tap))

    def distils(self, block: int) -> bool:
        """Whether block `block` has one square attention map over all tokens; the others attend within mask units, or
        pool their queries."""
        if not 1 <= block <= self.depth:
            return False
        stage, first = self.stage_at(block), block - 1 in self.stage_ends
        # timm's blocks at the head of a stage still attend as the stage before them does.
        reach = stage - 1 if first else stage
        return reach >= 2 and not (first and stage <= self.q_pool)

    def as_classifier(self) -> HieraConfig:
        """The sizes that a classifier is made in: every stage halves the grid."""
        return self.model_copy(update={"q_pool": 3})


EncoderSize = VitConfig | HieraConfig
"""What code that serves every family is given."""

SIZES: dict[str, EncoderSize] = {
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
    # The lightweight study's hierarchical encoder, the sizes of its teacher and of Hiera's paper, and ones for CPUs.
    "hiera_tiny": HieraConfig(),
    "hiera_base": HieraConfig(embed_dim=96, stages=(2, 3, 16, 3)),
    "hiera_micro": HieraConfig(embed_dim=16, stages=(1, 1, 2, 2), patch_stride=2, patch_kernel=3, image_size=64),
    "hiera_micro_32": HieraConfig(embed_dim=16, stages=(1, 1, 2, 2), patch_stride=1, patch_kernel=3, image_size=32),
}


def _named(value: object) -> object:
    """A mapping that names no family describes a plain vision transformer."""
    return {"name": "vit", **value} if isinstance(value, dict) else value


EncoderConfig = Annotated[
    VitConfig | RelativeVitConfig | HieraConfig,
    pydantic.Field(discriminator="name"),
    pydantic.BeforeValidator(_named),
    Presets(SIZES),
]


class _PositionPresets(Presets):
    """Presets of one kind: a file needs no `name` to say which."""

    def _read(self, path: Path) -> RelativePositions:
        return load_yaml(path, RelativePositions)


RelativePositionsConfig = Annotated[
    RelativePositions,
    _PositionPresets(
        {
            "block": RelativePositions(),
            "shared": RelativePositions(offsets="shared"),
            "both": RelativePositions(offsets="both"),
        }
    ),
]
