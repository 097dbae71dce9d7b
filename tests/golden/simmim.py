"""Golden case of SimMIM on its ViT with shared relative positions; its patches hold (channel, row, column), ours end in
the channel."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.simmim import SimMimConfig
from edgemim.models.convert.simmim import plan_simmim
from edgemim.models.encoder import TokenMask, unpatchify
from edgemim.models.normalization import IDENTITY
from edgemim.models.relative import RelativeEncoder
from edgemim.models.sizes import RelativeVitConfig
from tests.golden.case import Case, Comparison, NotCovered

_INDEX = "relative_position_index"


def compare(case: Case) -> Comparison:
    """Run our SimMIM on the case's weights and inputs."""
    result = Comparison(case)
    model = _build(case)
    plan = plan_simmim(case.weights)
    model.load_state_dict(plan.state(case.weights), strict=True)
    own = dict(model.encoder.vit.named_buffers())
    for name in (name for name in case.weights if name.endswith(_INDEX)):
        index = own[name.removeprefix("encoder.")]
        result.tensor(name, index.view_as(case.weights[name]), case.weights[name])
    images = case.inputs["images"]
    mask = TokenMask.of(case.inputs["mask"].flatten(1).bool())
    with torch.no_grad():
        _forward(result, model, images, mask)
    loss = model.loss(images, mask).loss
    result.output("loss", loss)
    loss.backward()
    result.gradients(plan.gradients(model.named_parameters()))
    return result.finish()


def _build(case: Case) -> MaskedImageModel:
    sizes = case.config
    own, shared = sizes.get("use_rel_pos_bias", False), sizes.get("use_shared_rel_pos_bias", True)
    if sizes.get("use_mean_pooling") or not (own or shared):
        raise NotCovered(f"{case.name} without a final norm or without relative positions")
    config = RelativeVitConfig(
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        patch_size=sizes["patch_size"],
        image_size=sizes["img_size"],
        mlp_ratio=sizes["mlp_ratio"],
        offsets={(True, True): "both", (True, False): "block", (False, True): "shared"}[own, shared],
        absolute_positions=sizes.get("use_abs_pos_emb", False),
        key_bias=False,
        layer_scale=sizes.get("init_values") or None,
    )
    method = SimMimConfig(mask_ratio=sizes["mask_ratio"], unit=sizes["mask_patch_size"] // sizes["patch_size"])
    encoder = RelativeEncoder(config)
    if encoder.vit.pos_embed is not None:  # theirs are learnt
        encoder.vit.pos_embed.requires_grad_(True)
    return method.build(encoder, IDENTITY, None)


def _forward(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask) -> None:
    size = model.encoder.config
    features = model.encoder(images, mask, taps=range(1, size.depth + 1), fill=model.mask_token)
    for number, tokens in features.tokens.items():
        if f"block{number}" in result.case.outputs:
            result.output(f"block{number}", tokens)
    grid = features.last[:, features.prefix :].transpose(1, 2).unflatten(2, size.grid)
    result.output("encoder_out", grid)
    prediction = model.branches[0].decoder(model.encode(images, mask), mask)
    result.output("reconstruction", unpatchify(prediction, size.patch_size, size.grid))
