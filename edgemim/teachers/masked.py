"""A frozen plain ViT that is shown the student's visible patches alone: the teacher of D-MAE (arXiv 2205.14443)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.models.encoder import Encoder, Features, TokenMask
from edgemim.models.normalization import Normalization
from edgemim.models.weights import from_timm, load_encoder, read_facts
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


def masked_teacher(config: AnyTeacher, grid: tuple[int, int]) -> MaskedTeacher:
    """The masked teacher that a teacher's configuration names, on the student's patch grid.

    Raises:
        UserError: if it is no plain vision transformer, or cuts its images into another grid.
    """
    if isinstance(config, EfficientNetLiteTeacher):
        raise UserError(
            f"teacher {config.name} is a convolutional network; this method distils attention on visible patches and "
            "needs a plain vision transformer: give --teacher checkpoint --teacher.path RUN, or a timm ViT"
        )
    name = config.model if isinstance(config, TimmTeacher) else str(config.path)
    encoder, normalization = _open(config, grid)
    if encoder.config.grid != grid:
        rows, columns = encoder.config.grid
        raise UserError(
            f"teacher {name} cuts its images into {rows} x {columns} patches, the student into {grid[0]} x {grid[1]}; "
            "both see the same visible patches, so give a teacher or an encoder with the same number"
        )
    teacher = MaskedTeacher(encoder, normalization)
    teacher.summary = f"{name}: {teacher.summary}"
    return teacher


def _open(config: TimmTeacher | CheckpointTeacher, grid: tuple[int, int]) -> tuple[Encoder, Normalization]:
    if isinstance(config, TimmTeacher):
        return _from_timm(create_timm_model(config.model, pretrained=config.pretrained), config.model)
    if config.path is None:
        raise UserError("teacher checkpoint needs a file or run folder; give --teacher.path")
    if not config.path.is_dir():
        encoder, own = _from_timm(config.load_file(), str(config.path))
        return encoder, Normalization(config.mean or own.mean, config.std or own.std)
    encoder = load_encoder(config.path)
    own = read_facts(config.path).get("preprocessing", {})
    mean = config.mean or own.get("mean", IMAGENET_DEFAULT_MEAN)
    std = config.std or own.get("std", IMAGENET_DEFAULT_STD)
    return encoder, Normalization(tuple(mean), tuple(std))  # pyright: ignore[reportArgumentType]


def _from_timm(model: nn.Module, name: str) -> tuple[Encoder, Normalization]:
    if not isinstance(model, VisionTransformer):
        raise UserError(
            f"teacher {name} is a {type(model).__name__}; this method distils attention on visible patches and needs a "
            "plain vision transformer"
        )
    facts = getattr(model, "default_cfg", {})
    normalization = Normalization(facts.get("mean", IMAGENET_DEFAULT_MEAN), facts.get("std", IMAGENET_DEFAULT_STD))
    return from_timm(model), normalization
