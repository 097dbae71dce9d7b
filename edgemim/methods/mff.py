"""MFF: masked pixels from the fused tokens of several blocks.

Improving Pixel-based MIM by Reducing Wasted Modeling Capability, arXiv 2308.00261. MAE whose decoder reads
z = norm(sum_i s_i P_i(x_i)), s = softmax(w), over the blocks floor(i (L - 1) / 5) + 1, i = 0 ... 5 (of 12 blocks:
1, 3, 5, 7, 9, 12); the loss is MAE's. With `target: low_pass` it is the paper's combination with PixMIM. The paper
crops simply: `transform.crop: simple_resized`.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from torch import nn

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import DecoderConfig, Fuse, TransformerDecoderConfig
from edgemim.methods.mae import pixel_branch
from edgemim.methods.masking import RandomMasking
from edgemim.methods.method import Method, refuse_hierarchical, rising_blocks
from edgemim.methods.pixmim import low_pass_target
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize


class MffConfig(Method):
    """Multi-level feature fusion: masked autoencoder that reads several blocks at once."""

    name: Literal["mff"] = "mff"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    fused_blocks: int = pydantic.Field(default=6, ge=2)
    """Number of blocks to fuse, spread evenly from the first to the last."""
    blocks: tuple[int, ...] = ()
    """The blocks to fuse, shallow to deep, in place of a number of them; the deepest enters as it is."""
    target: Literal["pixel", "low_pass"] = "pixel"
    """low_pass: PixMIM's target."""
    radius: float | None = pydantic.Field(default=None, gt=0)
    """Cycles an image that low_pass keeps; default 40 for every 224 pixels."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and deviation."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts the pixels."""

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on a hierarchical encoder, or on blocks that are not there or out of order."""
        refuse_hierarchical(
            self.name,
            size,
            "it fuses blocks of one width on one grid, and Hiera's own masked autoencoder fuses its stages",
        )
        if self.blocks:
            rising_blocks("blocks", self.blocks, size.depth)

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model; a teacher plays no part."""
        self.check(encoder.config)
        size = encoder.config
        low = self.target == "low_pass"
        target = low_pass_target(size, normalization, self.norm_pix_loss, self.radius) if low else None
        neck = Fuse(self.blocks or spread(size.depth, self.fused_blocks), size.width)
        branch = pixel_branch(encoder, self.decoder, self.norm_pix_loss, 1.0, neck=neck, target=target)
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), [branch], normalization)


def spread(depth: int, count: int) -> tuple[int, ...]:
    """Blocks floor(i (depth - 1) / (count - 1)) + 1 for i = 0 ... count - 1, each once (shallow encoders have fewer)."""
    return tuple(sorted({i * (depth - 1) // (count - 1) + 1 for i in range(count)}))
