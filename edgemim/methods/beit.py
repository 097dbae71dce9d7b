"""BEiT: the visual words of hidden blocks, told by a tokenizer file of the user's.

BEiT: BERT Pre-Training of Image Transformers, arXiv 2106.08254. 75 of 196 patches are hidden in blocks (algorithm 1) and
replaced by a mask token; all pass through the encoder; one linear layer behind its final norm scores the words of a
visual vocabulary; L = mean over hidden patches of -log p(word) (equation 2). The words come from a frozen tokenizer that
reads the whole image, the published one a discrete VAE at 112 pixels. None comes with this package: see
`teachers.tokenizer.OnnxTokenizer` for what the file must be. The paper's encoder has one table of relative positions and
LayerScale (`--encoder vit_base_rel_shared`); any encoder through which every patch passes will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import pydantic
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgemim.data.transforms import KeyedTransform, PretrainTransform
from edgemim.data.views import Distorted, Distortion
from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel, patch_branch
from edgemim.methods.decoders import LinearDecoderConfig
from edgemim.methods.masking import BlockMasking
from edgemim.methods.method import KEEPS_HIDDEN, Method, refuse_hierarchical
from edgemim.models.encoder import Encoder, TokenMask
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.teachers.tokenizer import OnnxTokenizer


class BeitConfig(Method):
    """Masked image modeling of visual words, which an ONNX file names (give one with --method.tokenizer)."""

    name: Literal["beit"] = "beit"
    """The method."""
    tokenizer: Path | None = None
    """ONNX file from RGB images in [0, 1], float32 [b, 3, h, w], to scores [b, words, rows, columns] or integers
    [b, rows, columns] on the encoder's patch grid."""
    tokenizer_size: int | None = pydantic.Field(default=None, ge=1)
    """Side in pixels of the tokenizer's images, where the file leaves it open; default the encoder's."""
    vocabulary: int = pydantic.Field(default=8192, ge=2)
    """Number of words of a file that gives integers; scores say it themselves."""
    mask_ratio: float = pydantic.Field(default=0.383, gt=0.0, lt=1.0)
    """Share of patches that are hidden (the paper: 75 of 196)."""
    min_block: int | None = pydantic.Field(default=None, ge=1)
    """Patches of the smallest hidden block; default 16 of 196, in proportion."""
    color_jitter: float = pydantic.Field(default=0.4, ge=0)
    """Largest relative change of brightness, contrast and saturation; the tokenizer sees them changed, too."""

    def build_transform(self, transform: PretrainTransform, image_size: int) -> KeyedTransform:
        """The given augmentation, then the jitter of colours."""
        crop, strength = transform.build(image_size), self.color_jitter
        if not strength:
            return crop
        # Every probability but the jitter's is zero.
        jitter = Distortion(
            jitter_probability=1.0,
            brightness=strength,
            contrast=strength,
            saturation=strength,
            hue=0.0,
            grey_probability=0.0,
            blur_probability=0.0,
        )
        return Distorted(crop, jitter)

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on a hierarchical encoder."""
        refuse_hierarchical(self.name, size, KEEPS_HIDDEN)

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model; a teacher plays no part. Raises UserError without a tokenizer, or on one that does not fit."""
        self.check(encoder.config)
        if self.tokenizer is None:
            raise UserError("method beit needs a tokenizer; give --method.tokenizer FILE.onnx")
        size = encoder.config
        tokenizer = OnnxTokenizer(
            self.tokenizer,
            image_size=size.image_size,
            grid=size.grid,
            vocabulary=self.vocabulary,
            input_size=self.tokenizer_size,
        )
        return self.compose(encoder, normalization, tokenizer)

    def compose(self, encoder: Encoder, normalization: Normalization, tokenizer: Tokenizer) -> MaskedImageModel:
        """Compose the model around an open tokenizer."""
        size = encoder.config
        target = WordTarget(tokenizer, normalization)
        branch = patch_branch("word", encoder, LinearDecoderConfig(), target, loss="cross_entropy")
        smallest = self.min_block or max(1, round(size.tokens * 16 / 196))
        masking = BlockMasking(ratio=self.mask_ratio, min_block=smallest, grid=size.grid)
        return MaskedImageModel(encoder, masking, [branch], normalization, drop=False)


class Tokenizer(Protocol):
    """What the target asks for its words."""

    vocabulary: int

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """Numbers of words of images in [0, 1]."""
        ...


@dataclass(frozen=True)
class WordTarget:
    """The word of each patch, by a tokenizer that sees the whole image."""

    tokenizer: Tokenizer
    normalization: Normalization

    @property
    def channels(self) -> int:
        """Numbers of a patch's prediction: one score a word."""
        return self.tokenizer.vocabulary

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Int[Tensor, "b n"]:
        """Numbers of words; the mask plays no part."""
        return self.tokenizer(self.normalization.undo(images))
