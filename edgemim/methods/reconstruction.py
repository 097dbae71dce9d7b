"""A frozen masked autoencoder, decoder included, that fills in what is hidden: read from a pre-training run."""

from __future__ import annotations

from pathlib import Path

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.mae import MaeConfig
from edgemim.models.build import build_encoder, parse_encoder
from edgemim.models.encoder import TokenMask
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.models.weights import load_weights, read_facts
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, TimmTeacher
from edgemim.training.checkpoint import read_checkpoint


class FrozenReconstruction(nn.Module):
    """A masked autoencoder that is never trained further and predicts pixels normalised per patch.

    Attributes:
        summary: what it is, for logs and run.json.
    """

    def __init__(self, model: MaskedImageModel, summary: str = "") -> None:
        super().__init__()
        self.model, self.summary = model, summary
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenReconstruction:
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Float[Tensor, "b n c"]:
        """Prediction for every patch of images in [0, 1], of which it sees the visible ones."""
        x = self.model.normalization.normalize(images)
        return self.model.branches[0].decoder(self.model.encode(x, mask), mask).float()


def reconstruction_teacher(
    teacher: TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher, size: EncoderSize
) -> FrozenReconstruction:
    """The masked autoencoder that a teacher's configuration names. Raises UserError on any other teacher."""
    if not isinstance(teacher, CheckpointTeacher) or teacher.path is None:
        raise UserError(
            "the target of hidden patches filled in needs a run of MAE; give --teacher checkpoint --teacher.path RUN"
        )
    return open_reconstruction(teacher.path, size)


def open_reconstruction(run: Path, size: EncoderSize) -> FrozenReconstruction:
    """The masked autoencoder of a run of `edgemim pretrain --method mae`, from its newest checkpoint.

    Raises:
        UserError: if the folder holds none, or one of other patches than an encoder of `size`.
    """
    facts = read_facts(run)
    try:
        config = parse_encoder(facts["encoder"])
        method = MaeConfig.model_validate(facts["method"])
        normalization = Normalization(*(tuple(facts["preprocessing"][key]) for key in ("mean", "std")))
    except (KeyError, TypeError, pydantic.ValidationError) as error:
        raise UserError(f"{run} is no run of --method mae; a reconstruction needs one") from error
    if not method.norm_pix_loss:
        raise UserError(f"{run} was trained with norm_pix_loss false; the blend is of normalised pixels")
    if (config.image_size, config.patch_size) != (size.image_size, size.patch_size):
        raise UserError(
            f"{run} has patches of {config.patch_size} in {config.image_size} pixels, the encoder of "
            f"{size.patch_size} in {size.image_size}; both see the same patches, so give one with the same"
        )
    if config.hierarchical != size.hierarchical:
        raise UserError(
            f"{run} holds a {config.name} and encoder {size.name} is of another family, which orders a patch's pixels in "
            "another way; give a run of the same family"
        )
    model = method.build(build_encoder(config), normalization, None)
    load_weights(model, _newest(run / "checkpoints"))
    return FrozenReconstruction(model, f"{run}: masked autoencoder of width {config.width}, depth {config.depth}")


def _newest(folder: Path) -> dict[str, Tensor]:
    # Read only: the other run's folder is not put in order.
    paths = sorted(path for path in folder.glob("step-*") if path.is_dir() and not path.suffix)
    if not paths:
        raise UserError(f"{folder} holds no checkpoint; a reconstruction needs the decoder, which only they hold")
    try:
        return read_checkpoint(paths[-1]).tensors["model"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{paths[-1]} cannot be read: {error}") from error
