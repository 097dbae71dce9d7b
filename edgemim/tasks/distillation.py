"""Distillation of a classifier from another one, as DeiT does it (arXiv 2012.12877, section 3).

The student learns the labels and what a frozen teacher says of the same images, mixed as they are: its class (hard,
equation 3) or its probabilities at a temperature (soft, equation 2). The lightweight study (arXiv 2205.14443) pools the patch
tokens for the labels, and the class token listens to the teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.config import Config
from edgemim.models.normalization import Normalization


class DistillationConfig(Config):
    """What a classifier learns from another one; nothing without a teacher."""

    teacher: str | None = None
    """A classifier of the same classes: the folder of a fine-tuning run, or timm:NAME."""
    weights: Path | None = None
    """Weights file for timm:NAME, instead of timm's download."""
    kind: Literal["hard", "soft"] = "hard"
    """hard learns the teacher's class, soft its probabilities."""
    weight: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Share of the loss; the labels have the rest."""
    temperature: float = pydantic.Field(default=3.0, gt=0)
    """What soft divides the logits of both by."""
    through: Literal["token", "head"] = "token"
    """Who listens: the class token with a head of its own, averaged with the other in use, or the head of the labels."""

    @pydantic.model_validator(mode="after")
    def _check_teacher(self) -> DistillationConfig:
        if self.teacher is None and (idle := sorted(self.model_dump(exclude_defaults=True))):
            raise ValueError(f"'{idle[0]}' has no effect without a teacher; give distillation.teacher RUN or timm:NAME")
        return self


class ClassTeacher(nn.Module):
    """A frozen classifier with its own normalisation and input size."""

    def __init__(
        self,
        model: nn.Module,
        normalization: Normalization,
        image_size: int,
        summary: str,
        order: tuple[int, ...] | None = None,
    ) -> None:
        """Take a model.

        Args:
            model: normalised images [b, 3, s, s] to logits [b, classes].
            normalization: of its input.
            image_size: side of its input, pixels.
            summary: says what it is, for the record.
            order: which of its classes is the student's first, second, ...; None where they are the same.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.normalization, self.image_size, self.summary = normalization, image_size, summary
        self.register_buffer("order", None if order is None else torch.tensor(order))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b classes"]:
        """Logits of images in [0, 1] (mixed ones, too), in the student's order of classes."""
        if images.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        logits = self.model(self.normalization.normalize(images)).float()
        order = self.get_buffer("order") if self.order is not None else None
        return logits if order is None else logits.index_select(1, order)


class Distillation:
    """A teacher and how it is listened to. No module: it never enters the student's checkpoint."""

    def __init__(self, config: DistillationConfig, teacher: ClassTeacher) -> None:
        self.config, self.teacher = config, teacher

    def loss(self, told: Float[Tensor, "b classes"], answers: Float[Tensor, "b classes"]) -> Tensor:
        """Mean over the images of how far the student's logits are from the teacher's answers (its logits).

        DeiT's published code divides the soft form by the number of classes, too; here it is the paper's.
        """
        if self.config.kind == "hard":
            return F.cross_entropy(told, answers.argmax(1))
        heat = self.config.temperature
        student, teacher = F.log_softmax(told / heat, dim=1), F.log_softmax(answers / heat, dim=1)
        return heat**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
