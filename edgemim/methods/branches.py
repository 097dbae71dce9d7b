"""The masked image model: an encoder, a masking and a list of branches; a method is a choice of these parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.methods.decoders import DecoderConfig, LinearDecoder, Pick, final_tokens
from edgemim.methods.masking import Masking, masking_for
from edgemim.methods.pretraining import PretrainObjective
from edgemim.methods.targets import Derived, PixelTarget, Target
from edgemim.models.encoder import Encoder, Features, TokenMask
from edgemim.models.normalization import Normalization
from edgemim.training.objective import StepOutput

Score = Literal["masked", "visible", "all"]
LossName = Literal["mse", "l1", "smooth_l1", "cosine"]


@dataclass(frozen=True)
class Branch:
    """One prediction task: a decoder, its target, a loss and which tokens count."""

    name: str
    decoder: nn.Module
    target: Target
    loss: LossName | Literal["cross_entropy"]
    weight: float = 1.0
    score: Score = "masked"


def patch_branch(
    name: str,
    encoder: Encoder,
    decoder: DecoderConfig,
    target: Target,
    *,
    tap: int | None = None,
    neck: nn.Module | None = None,
    loss: LossName | Literal["cross_entropy"] = "mse",
    weight: float = 1.0,
    score: Score = "masked",
) -> Branch:
    """A branch that predicts something of every patch: from `neck`, or from block `tap` (default the last).

    The last block's tokens pass the encoder's final norm (a hierarchical encoder's are fused with those of earlier
    stages before), an earlier one's are read as the block left them.
    """
    size = encoder.config
    if neck is None:
        neck = final_tokens(size) if tap is None or tap == size.depth else Pick(tap, normed=False)
    width = size.width_at(neck.taps[0]) if isinstance(neck, Pick) else size.width
    made = decoder.build(neck, width, target.channels, size.grid, prefix=size.prefix, learn_positions=size.hierarchical)
    return Branch(name, made, target, loss, weight, score)


class MaskedImageModel(PretrainObjective):
    """Sum over branches of weight * mean over the scored tokens of loss(decoder(features), target(images)).

    Raises UserError, when it is composed, if no patch would stay visible or a decoder cannot do without the others.
    """

    def __init__(
        self,
        encoder: Encoder,
        masking: Masking,
        branches: Sequence[Branch],
        normalization: Normalization,
        *,
        drop: bool = True,
        neck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        masking = masking_for(masking, encoder.config)
        masking.check(encoder.config.tokens)
        _check(branches, drops=drop and masking.ratio > 0)
        self.encoder = encoder
        self.masking = masking
        self.branches = tuple(branches)
        # Decoders are trained and saved; targets (a teacher among them) stay outside the module tree on purpose.
        self.decoders = nn.ModuleDict({branch.name: branch.decoder for branch in branches})
        # What several branches read of the features is computed once, by a neck that they share.
        self.neck = neck
        self.normalization = normalization
        # What the branches read is said by their parts: necks by `taps`, readers of attention by `attention`.
        roots = [*(branch.decoder for branch in branches), *([] if neck is None else [neck])]
        parts = [part for root in roots for part in root.modules()]
        self.taps = _union(parts, "taps")
        self.attention = _union(parts, "attention")
        self.mask_token = None if drop else nn.Parameter(0.02 * torch.randn(1, 1, encoder.config.width))

    def forward(self, images: Tensor, keys: Int[Tensor, " b"], labels: Tensor | None = None) -> StepOutput:
        """The loss of a batch.

        Args:
            images: uint8 [b, 3, h, w].
            keys: a 63-bit key for each sample, from which its mask is drawn.
            labels: not used.
        """
        mask = self.masking(keys, self.encoder.config.tokens)
        return self.loss(self.normalization.apply(images), mask)

    def loss(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> StepOutput:
        """The loss of normalised images under a given mask; metrics hold each branch's share, unweighted."""
        targets = self._targets(images, mask)
        features = self.encode(images, mask)
        metrics: dict[str, Tensor] = {}
        total = images.new_zeros(())
        for branch in self.branches:
            prediction = branch.decoder(features, mask)
            value = reduce(LOSSES[branch.loss](prediction.float(), targets[id(branch.target)]), mask, branch.score)
            # Not detached here: a compiled graph sees that it equals the loss, and hands the loss out without gradient.
            metrics[f"loss_{branch.name}"] = value
            total = total + branch.weight * value
        return StepOutput(total, metrics)

    def encode(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Features:
        """What the branches read; masked patches are dropped, or replaced by the mask token."""
        features = self.encoder(images, mask, taps=self.taps, attention=self.attention, fill=self.mask_token)
        return features if self.neck is None else self.neck(features)

    @torch.no_grad()
    def _targets(self, images: Tensor, mask: TokenMask) -> dict[int, Tensor]:
        unique = {id(branch.target): branch.target for branch in self.branches}
        shared: dict[int, Any] = {}
        for target in unique.values():
            if isinstance(target, Derived) and id(target.source) not in shared:
                shared[id(target.source)] = target.source(images, mask)
        return {
            key: target.read(shared[id(target.source)]) if isinstance(target, Derived) else target(images, mask)
            for key, target in unique.items()
        }

    @torch.no_grad()
    def reconstruct(self, images: Tensor, keys: Int[Tensor, " b"]) -> tuple[Tensor, Tensor] | None:
        """Masked input and reconstruction of uint8 images, both [b, 3, h, w] in [0, 1]; None without a pixel branch.

        Visible patches show the input, masked ones grey or the prediction, un-normalised per patch.
        """
        pixel = next((b for b in self.branches if isinstance(b.target, PixelTarget)), None)
        if pixel is None:
            return None
        assert isinstance(pixel.target, PixelTarget)
        x = self.normalization.apply(images)
        mask = self.masking(keys, self.encoder.config.tokens)
        prediction = pixel.decoder(self.encode(x, mask), mask).float()
        size, grid = self.encoder.config.patch_size, self.encoder.config.grid
        painted = pixel.target.picture(prediction, x, grid)
        rows = mask.masked.view(-1, 1, *grid).repeat_interleave(size, 2).repeat_interleave(size, 3)
        true = self.normalization.undo(x)
        hidden = torch.where(rows, torch.full_like(true, 0.5), true)
        full = torch.where(rows, self.normalization.undo(painted), true)
        return hidden, full.clamp(0, 1)


def _check(branches: Sequence[Branch], drops: bool) -> None:
    if len({branch.name for branch in branches}) < len(branches):
        raise ValueError("branches need distinct names: their decoders are saved under them")
    for branch in branches:
        if drops and isinstance(branch.decoder, LinearDecoder):
            raise UserError(
                f"a linear decoder cannot predict the dropped patches of branch '{branch.name}'; "
                "take a transformer decoder, or mask ratio 0"
            )


def _union(parts: Sequence[nn.Module], attribute: str) -> tuple[int, ...]:
    return tuple(sorted({number for part in parts for number in getattr(part, attribute, ())}))


def reduce(loss: Float[Tensor, "b n"], mask: TokenMask, score: Score) -> Float[Tensor, ""]:
    """Mean of a per-token loss over the masked, the visible or all tokens; an empty set counts as zero."""
    if score == "all":
        return loss.mean()
    chosen = (mask.masked if score == "masked" else ~mask.masked).to(loss.dtype)
    return (loss * chosen).sum() / chosen.sum().clamp(min=1)


def _mean_over_channels(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda prediction, target: function(prediction, target, reduction="none").mean(-1)


def _cross_entropy(logits: Float[Tensor, "b n classes"], target: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mean_over_channels(F.mse_loss),
    "l1": _mean_over_channels(F.l1_loss),
    "smooth_l1": _mean_over_channels(F.smooth_l1_loss),
    "cosine": lambda prediction, target: 2 - 2 * F.cosine_similarity(prediction, target, dim=-1),
    "cross_entropy": _cross_entropy,
}
