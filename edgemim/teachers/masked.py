"""A frozen ViT that is shown the student's visible patches alone: the teacher of D-MAE (arXiv 2205.14443)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.hiera import Hiera
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.models.encoder import Encoder, Features, TokenMask
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.models.weights import from_timm
from edgemim.teachers.checkpoint import CheckpointTeacher
from edgemim.teachers.efficientnet_lite import EfficientNetLiteTeacher
from edgemim.teachers.timm_model import TimmTeacher, create_timm_model

if TYPE_CHECKING:
    AnyTeacher = TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher


class MaskedTeacher(nn.Module):
    """A frozen encoder with its own normalisation; never trained, never in training mode.

    Its patch grid equals the student's, so that one mask holds for both; patches may be of another size.

    Attributes:
        config: sizes of the encoder.
        summary: what it is, for logs and run.json.
    """

    def __init__(self, encoder: Encoder, normalization: Normalization, summary: str = "") -> None:
        super().__init__()
        self.encoder, self.normalization, self.config = encoder, normalization, encoder.config
        sizes = f"width {self.config.width}, depth {self.config.depth}, {self.config.heads} heads"
        self.summary = summary or f"vision transformer of {sizes} on the student's visible patches"
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> MaskedTeacher:
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        mask: TokenMask,
        *,
        taps: Collection[int] = (),
        attention: Collection[int] = (),
    ) -> Features:
        """Encode the visible patches of images.

        Args:
            images: the student's view in [0, 1], not normalised; resized (bicubic) where the teacher's size differs.
            mask: the student's.
            taps: blocks whose tokens are wanted.
            attention: blocks whose attention logits are wanted.
        """
        side = self.config.image_size
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return self.encoder(self.normalization.normalize(images), mask, taps=taps, attention=attention)


def masked_teacher(config: AnyTeacher, size: EncoderSize) -> MaskedTeacher:
    """The masked teacher that a teacher's configuration names, for a student of a given size.

    Raises:
        UserError: if it is no vision transformer, not of the student's family, or cuts its images into another grid.
    """
    if isinstance(config, EfficientNetLiteTeacher):
        raise UserError(
            f"teacher {config.name} is a convolutional network; this method distils attention on visible patches and "
            "needs a vision transformer: give --teacher checkpoint --teacher.path RUN, or a timm ViT"
        )
    name = config.model if isinstance(config, TimmTeacher) else str(config.path)
    encoder, normalization = _open(config, size)
    _check_family(name, encoder.config, size)
    grid = size.grid
    if encoder.config.grid != grid:
        rows, columns = encoder.config.grid
        raise UserError(
            f"teacher {name} cuts its images into {rows} x {columns} patches, the student into {grid[0]} x {grid[1]}; "
            "both see the same visible patches, so give a teacher or an encoder with the same number"
        )
    teacher = MaskedTeacher(encoder, normalization)
    teacher.summary = f"{name}: {teacher.summary}"
    return teacher


def _check_family(name: str, teacher: EncoderSize, student: EncoderSize) -> None:
    kinds = {False: ("plain", "vit_base_patch16_224.mae"), True: ("hierarchical", "hiera_base_224.mae")}
    if teacher.hierarchical != student.hierarchical:
        own, (wanted, example) = kinds[teacher.hierarchical][0], kinds[student.hierarchical]
        raise UserError(
            f"teacher {name} is a {own} vision transformer and encoder {student.name} a {wanted} one: their tokens do not "
            f"match; give --teacher NAME of a {wanted} one (such as {example}), or --teacher checkpoint --teacher.path RUN"
        )


def _open(config: TimmTeacher | CheckpointTeacher, size: EncoderSize) -> tuple[Encoder, Normalization]:
    if isinstance(config, TimmTeacher):
        return _from_timm(create_timm_model(config.model, pretrained=config.pretrained), config.model, size)
    if config.path is None:
        raise UserError("teacher checkpoint needs a file or run folder; give --teacher.path")
    own = config.own_encoder()
    if own is None:
        encoder, statistics = _from_timm(config.load_file(), str(config.path), size)
        mean, std = statistics.mean, statistics.std
    else:
        encoder, mean, std = own
    mean, std = config.mean or mean, config.std or std
    return encoder, Normalization(mean or IMAGENET_DEFAULT_MEAN, std or IMAGENET_DEFAULT_STD)


def _from_timm(model: nn.Module, name: str, size: EncoderSize) -> tuple[Encoder, Normalization]:
    if not isinstance(model, VisionTransformer | Hiera):
        raise UserError(
            f"teacher {name} is a {type(model).__name__}; this method distils attention on visible patches and needs a "
            "plain or hierarchical vision transformer"
        )
    facts = getattr(model, "default_cfg", {})
    normalization = Normalization(facts.get("mean", IMAGENET_DEFAULT_MEAN), facts.get("std", IMAGENET_DEFAULT_STD))
    # As it was pre-trained, not as a classifier: it halves its grid as often as the student.
    return from_timm(model, q_pool=getattr(size, "q_pool", None)), normalization
