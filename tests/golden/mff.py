"""Golden case of MFF: mmpretrain's weights under our names; its position tables put the row first, ours the column."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import Fuse, TransformerDecoderConfig
from edgemim.methods.masking import mask_by_noise
from edgemim.methods.mff import MffConfig, spread
from edgemim.models.convert.mff import plan_mff
from edgemim.models.convert.plan import swap_halves
from edgemim.models.encoder import Encoder, TokenMask, gather_tokens
from edgemim.models.normalization import IDENTITY
from edgemim.models.sizes import VitConfig
from tests.golden.case import Case, Comparison
from tests.golden.mae import decoder_of, stored_places
from tests.golden.taps import module_output


def compare(case: Case) -> Comparison:
    """Run our MFF on the case's weights and inputs."""
    result = Comparison(case)
    model = build(case)
    decoder = decoder_of(model)
    assert isinstance(decoder.neck, Fuse)
    assert model.encoder.vit.pos_embed is not None
    result.tensor(
        "backbone.pos_embed (computed)", swap_halves(model.encoder.vit.pos_embed), case.weights["backbone.pos_embed"]
    )
    result.tensor(
        "neck.decoder_pos_embed (computed)", swap_halves(decoder.positions), case.weights["neck.decoder_pos_embed"]
    )
    plan = plan_mff(case.weights)
    model.load_state_dict(plan.state(case.weights), strict=True)
    # The table is theirs now; the decoder's is no weight of ours and is put in by hand.
    decoder.positions.copy_(case.weights["neck.decoder_pos_embed"])

    images = case.inputs["images"]
    mask = mask_by_noise(case.inputs["noise"], case.config["mask_ratio"])
    result.output("mask", mask.masked.float())
    result.output("ids_restore", case.inputs["noise"].argsort(1).argsort(1))
    place = stored_places(case.inputs["ids_shuffle"], mask)
    with torch.no_grad():
        _forward(result, model, images, mask, place)
    loss = model.loss(images, mask).loss
    result.output("loss", loss)
    loss.backward()
    result.gradients(plan.gradients(model.named_parameters()))
    return result.finish()


def build(case: Case) -> MaskedImageModel:
    """The method as its own configuration builds it, in the case's sizes."""
    sizes = case.config
    encoder = Encoder(
        VitConfig(
            width=sizes["embed_dims"],
            depth=sizes["num_layers"],
            heads=sizes["num_heads"],
            patch_size=sizes["patch_size"],
            image_size=sizes["img_size"],
            mlp_ratio=sizes["feedforward_channels"] / sizes["embed_dims"],
        )
    )
    decoder = TransformerDecoderConfig(
        width=sizes["decoder_embed_dim"],
        depth=sizes["decoder_depth"],
        heads=sizes["decoder_num_heads"],
        mlp_ratio=case.weights["neck.decoder_blocks.0.ffn.layers.0.0.weight"].shape[0] / sizes["decoder_embed_dim"],
    )
    blocks = tuple(index + 1 for index in sizes["out_indices"])
    # Where they are the published rule's, the rule itself is compared.
    evenly = blocks == spread(sizes["num_layers"], len(blocks))
    chosen = {"fused_blocks": len(blocks)} if evenly else {"blocks": blocks}
    method = MffConfig.model_validate({"mask_ratio": sizes["mask_ratio"], "decoder": decoder, **chosen})
    model = method.build(encoder, IDENTITY, None)
    assert model.taps == blocks
    return model


def _forward(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask, place: Tensor) -> None:
    decoder = decoder_of(model)
    neck = decoder.neck
    assert isinstance(neck, Fuse)
    depth = model.encoder.config.depth
    features = model.encoder(images, mask, taps=range(depth + 1))
    result.output("patch_embed", model.encoder.vit.patch_embed(images))
    for number in range(1, depth + 1):
        if f"block{number}" in result.case.outputs:
            result.output(f"block{number}", gather_tokens(features.tokens[number], place))
    with ExitStack() as stack:
        projected = [stack.enter_context(module_output(part)) for part in neck.projections]
        fused = neck(features)
    for number, found in enumerate(projected):
        result.output(f"proj{number}", gather_tokens(found[0], place))
    result.output("softmax_weights", neck.weights.softmax(0))
    result.output("latent_fused_normed", gather_tokens(fused, place))
    result.output("pred", decoder(features, mask))
    result.output("target", model.branches[0].target(images, mask))
