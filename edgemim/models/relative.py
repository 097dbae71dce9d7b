"""The encoder's forward over timm's `Beit`: relative positions shared by all blocks, LayerScale, masked tokens in place."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from timm.models.beit import Beit
from torch import Tensor, nn

from edgemim.models.encoder import Encoder, initialise_linear
from edgemim.models.sizes import RelativeVitConfig


class RelativeEncoder(Encoder):
    """A vision transformer whose only positions are one learnt bias for each offset between two patches and head.

    It gives no attention logits (`attention` of its forward).
    """

    def __init__(self, config: RelativeVitConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.vit = Beit(  # pyright: ignore[reportAttributeAccessIssue] (the forward asks for what both have)
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            init_values=config.layer_scale,
            use_abs_pos_emb=False,
            use_shared_rel_pos_bias=True,
            num_classes=0,
            global_pool="",
        )
        self.initialise()

    def initialise(self) -> None:
        """Draw the weights as the plain encoder's; offsets start without a bias, as timm leaves them."""
        self.vit.apply(initialise_linear)
        patch = self.vit.patch_embed.proj
        nn.init.xavier_uniform_(patch.weight.view(patch.weight.shape[0], -1))
        assert patch.bias is not None and self.vit.cls_token is not None
        nn.init.zeros_(patch.bias)
        nn.init.normal_(self.vit.cls_token, std=0.02)

    def _block_options(self, visible: Int[Tensor, "b v"] | None) -> dict[str, Tensor]:
        bias: Float[Tensor, "... heads t t"] = self.vit.rel_pos_bias()  # pyright: ignore
        if visible is not None:
            place = torch.cat([visible.new_zeros(len(visible), 1), visible + 1], dim=1)
            square = bias.reshape(-1, *bias.shape[-2:])
            bias = square[:, place[:, :, None], place[:, None, :]].transpose(0, 1)
        return {"shared_rel_pos_bias": bias}
