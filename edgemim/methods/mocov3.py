"""MoCo-v3: two views of an image agree, judged against the other images of the batch by a slowly moving copy.

An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057, algorithm 1.
L = c(q1, k2) + c(q2, k1), c(q, k) = 2 t CE(q k^T / t): q are the class tokens behind projector and predictor, k those of
the other view behind a copy of encoder and projector that follows them, copy += (1 - m) (own - copy), with m from 0.99
to 1 along a half cosine. The patch embedding stays as it was drawn (section 4 of the paper). No patch is masked: this is
a sibling of the masked image models, and what a pixel at some place changes says nothing here.
With accumulation, batch norm and loss see a part of the batch at a time.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import pydantic
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgemim.data.transforms import KeyedTransform, PretrainTransform
from edgemim.data.views import Distortion, Views
from edgemim.errors import UserError
from edgemim.methods.contrast import contrast, mlp_head, processes
from edgemim.methods.method import Method
from edgemim.methods.pretraining import PretrainObjective
from edgemim.models.encoder import Encoder, Features
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.training.objective import StepOutput


class MocoV3Config(Method):
    """Contrastive learning of two views of an image, with a momentum encoder; no patch is masked."""

    name: Literal["mocov3"] = "mocov3"
    """The method."""
    temperature: float = pydantic.Field(default=0.2, gt=0)
    """What similarities are divided by."""
    momentum: float = pydantic.Field(default=0.99, ge=0, le=1)
    """Share of itself that the momentum encoder keeps in the first step; rises to 1 along a half cosine."""
    embedding_width: int = pydantic.Field(default=256, ge=1)
    """Numbers of the vector that is compared."""
    hidden_width: int = pydantic.Field(default=4096, ge=1)
    """Width inside the projector and the predictor."""
    freeze_patch_embedding: bool = True
    """Never train the patch embedding (the lightweight study, arXiv 2205.14443, trains it)."""
    first_view: Distortion = Distortion()
    """Distortion of one view."""
    second_view: Distortion = Distortion(blur_probability=0.1, solarize_probability=0.2)
    """Distortion of the other view."""

    def build_transform(self, transform: PretrainTransform, image_size: int) -> KeyedTransform:
        """Two views, each cropped as `transform` says and distorted in its own way."""
        return Views(transform.build(image_size), (self.first_view, self.second_view))

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on an encoder without a class token."""
        if not size.prefix:
            raise UserError(
                f"method {self.name} does not run on encoder {size.name}: it compares class tokens, and there is none; give "
                "--method mae, or a plain encoder such as --encoder vit_tiny"
            )

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MomentumContrast:
        """Compose the model and draw the encoder's weights as published; a teacher plays no part.

        Raises:
            UserError: if the encoder has no class token.
        """
        self.check(encoder.config)
        draw_as_published(encoder)
        if self.freeze_patch_embedding:
            encoder.vit.patch_embed.requires_grad_(False)
        width, hidden, out = encoder.config.width, self.hidden_width, self.embedding_width
        return MomentumContrast(
            encoder,
            normalization,
            projector=mlp_head(3, width, hidden, out),
            predictor=mlp_head(2, out, hidden, out),
            temperature=self.temperature,
            momentum=self.momentum,
        )


class MomentumContrast(PretrainObjective):
    """An encoder with projector and predictor, and the momentum encoder with its projector that gives the keys.

    All four are in the module tree, so that a resumed run goes on with the same keys; the encoder alone is handed on.
    """

    def __init__(
        self,
        encoder: Encoder,
        normalization: Normalization,
        *,
        projector: nn.Module,
        predictor: nn.Module,
        temperature: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(projector).requires_grad_(False)
        self.normalization = normalization
        self.temperature, self.momentum = temperature, momentum

    @torch.no_grad()
    def begin_step(self, progress: float) -> None:
        """The momentum encoder's step, once for each of the optimizer's and before the keys are taken, as published.

        Parameters alone: the running statistics of its batch norms come from its own passes. It goes towards weights
        that a step without a finite gradient left as they were.
        """
        share = 1 - momentum_at(progress, self.momentum)
        mine: list[Tensor] = [*self.momentum_encoder.parameters(), *self.momentum_projector.parameters()]
        own: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        # As a step towards them: where both are equal (fixed positions, frozen patches) no rounding can creep in.
        torch._foreach_lerp_(mine, own, share)

    def forward(
        self, images: Tensor, keys: Int[Tensor, " b"] | None = None, labels: Tensor | None = None
    ) -> StepOutput:
        """The loss of a batch.

        Args:
            images: uint8 [b, 2, 3, h, w], two views of each image.
            keys: not used; the views were drawn from them.
            labels: not used.

        Raises:
            UserError: if there is but one image to compare.
        """
        if len(images) * processes() < 2:
            raise UserError(
                "method mocov3 compares the images of a batch with each other; set batch_size to 2 or more for each "
                "accumulated part"
            )
        first, second = images.unbind(1)
        return self.loss(self.normalization.apply(first), self.normalization.apply(second))

    def loss(self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> StepOutput:
        """The loss of two normalised views; metrics hold both halves and how often the right key is the nearest."""
        q1, q2 = (self.predictor(z) for z in self.project(first, second))
        k1, k2 = self.targets(first, second)
        forth, hits = contrast(q1, k2, self.temperature)
        back, _ = contrast(q2, k1, self.temperature)
        metrics = {"loss_q1k2": forth.detach(), "loss_q2k1": back.detach(), "contrast_top1": hits}
        return StepOutput(forth + back, metrics)

    def pool(self, features: Features) -> Float[Tensor, "b width"]:
        """The class token, the only one of the last block that the loss sees."""
        return features.last[:, 0]

    def project(self, *views: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], ...]:
        """The projections of views, before the predictor."""
        return _project(self.encoder, self.projector, views)

    @torch.no_grad()
    def targets(self, *views: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], ...]:
        """The keys: projections of views by the momentum encoder, without gradient."""
        return _project(self.momentum_encoder, self.momentum_projector, views)


def _project(encoder: Encoder, projector: nn.Module, views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # One pass of the encoder for all views, but batch norm sees one view at a time.
    tokens = encoder(torch.cat(views)).last[:, 0]
    return tuple(projector(view) for view in tokens.chunk(len(views)))


def momentum_at(progress: float, first: float) -> float:
    """Momentum when a share of the run is done: 1 - (1 - first) (1 + cos(pi progress)) / 2."""
    return 1 - (1 - first) * 0.5 * (1 + math.cos(math.pi * progress))


def draw_as_published(encoder: Encoder) -> None:
    """Draw anew what MoCo-v3 draws in another way than MAE: queries, keys and values as three matrices, and a class
    token of N(0, 1e-6)."""
    for name, parameter in encoder.vit.named_parameters():
        if name.endswith("attn.qkv.weight"):
            out, width = parameter.shape
            bound = math.sqrt(6 / (out // 3 + width))
            nn.init.uniform_(parameter, -bound, bound)
    assert encoder.vit.cls_token is not None
    nn.init.normal_(encoder.vit.cls_token, std=1e-6)
