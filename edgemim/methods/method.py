"""What the configuration of every method has in common."""

from __future__ import annotations

from typing import Literal

from torch import nn

from edgemim.config import Config
from edgemim.methods.branches import MaskedImageModel
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization

TeacherKind = Literal["none", "features", "masked"]


class Method(Config):
    """Base of the methods' configurations: each composes its own model."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """What --teacher is built as: not at all, as features of the whole image on the student's grid, or as a
        vision transformer that sees the student's visible patches."""
        return "none"

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model around an encoder. Raises UserError on what cannot be composed."""
        raise NotImplementedError
