"""What `edgemim pretrain` asks of whatever it trains: an encoder to hand on, and perhaps a picture."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from edgemim.models.encoder import Encoder, Features
from edgemim.models.normalization import Normalization
from edgemim.training.objective import Objective


class PretrainObjective(Objective):
    """An objective around an encoder.

    Attributes:
        encoder: what is trained and handed on.
        normalization: what pixels pass through before the encoder reads them.
    """

    encoder: Encoder
    normalization: Normalization

    @property
    def exported(self) -> nn.Module:
        """What leaves pre-training: the encoder in timm's names."""
        return self.encoder.vit

    def pool(self, features: Features) -> Float[Tensor, "b width"]:
        """An image's feature vector, by which k-NN judges the encoder: the mean of the last block's patch tokens."""
        return features.pooled(max(features.tokens))

    def reconstruct(self, images: Tensor, keys: Int[Tensor, " b"]) -> tuple[Tensor, Tensor] | None:
        """Masked input and reconstruction of uint8 images, both [b, 3, h, w] in [0, 1]; None where there is none."""
        return None
