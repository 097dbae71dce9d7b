"""Golden cases of masked autoencoders: the published model's weights in ours, compared at every stored tap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import TransformerDecoder, TransformerDecoderConfig
from edgemim.methods.mae import MaeConfig
from edgemim.methods.masking import mask_by_noise
from edgemim.methods.targets import PixelTarget
from edgemim.models.convert.mae import plan_mae
from edgemim.models.convert.plan import Plan
from edgemim.models.encoder import Encoder, Features, TokenMask, gather_tokens, patchify, unpatchify
from edgemim.models.normalization import IDENTITY
from edgemim.models.sizes import VitConfig
from tests.golden.case import Case, Comparison
from tests.golden.taps import block_outputs


def compare(case: Case) -> Comparison:
    """Run our MAE on the case's weights and inputs."""
    result = Comparison(case)
    model = build(case)
    assert model.encoder.vit.pos_embed is not None
    result.tensor("pos_embed (computed)", model.encoder.vit.pos_embed, case.weights["pos_embed"])
    decoder = decoder_of(model)
    result.tensor("decoder_pos_embed (computed)", decoder.positions, case.weights["decoder_pos_embed"])
    plan = load(model, case.weights)

    images = case.inputs["images"]
    mask = mask_by_noise(case.inputs["noise"], case.config["mask_ratio"])
    result.output("mask", mask.masked.float())
    _forward(result, model, images, mask)
    _losses(result, model, images, mask)
    model.zero_grad()
    model.loss(images, mask).loss.backward()
    result.gradients(plan.gradients(model.named_parameters()))
    return result.finish()


def build(case: Case) -> MaskedImageModel:
    """The method as its own configuration builds it, in the case's sizes."""
    sizes = case.config
    encoder = Encoder(
        VitConfig(
            width=sizes["embed_dim"],
            depth=sizes["depth"],
            heads=sizes["num_heads"],
            patch_size=sizes["patch_size"],
            image_size=sizes["img_size"],
            mlp_ratio=sizes["mlp_ratio"],
        )
    )
    decoder = TransformerDecoderConfig(
        width=sizes["decoder_embed_dim"],
        depth=sizes["decoder_depth"],
        heads=sizes["decoder_num_heads"],
        mlp_ratio=sizes["mlp_ratio"],
    )
    normalized = sizes.get("norm_pix_loss", True)
    return MaeConfig(mask_ratio=sizes["mask_ratio"], norm_pix_loss=normalized, decoder=decoder).build(
        encoder, IDENTITY, None
    )


def decoder_of(model: MaskedImageModel) -> TransformerDecoder:
    """The only branch's decoder."""
    decoder = model.branches[0].decoder
    assert isinstance(decoder, TransformerDecoder)
    return decoder


def load(model: MaskedImageModel, weights: Mapping[str, Tensor]) -> Plan:
    """Put the original weights into the model, every one and nothing else, as the library converts them."""
    plan = plan_mae(weights)
    model.load_state_dict(plan.state(weights), strict=True)
    return plan


def _forward(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask) -> None:
    outputs, decoder, depth = result.case.outputs, decoder_of(model), model.encoder.config.depth
    place = stored_places(result.case.inputs["ids_shuffle"], mask)
    with torch.no_grad(), block_outputs(decoder.blocks) as inner:
        features = model.encoder(images, mask, taps=range(depth + 1), attention=[depth])
        prediction = decoder(features, mask)
        _embeddings(result, model.encoder, features, images, mask)
    for number in range(1, depth + 1):
        if f"block{number}" in outputs:
            result.output(f"block{number}", gather_tokens(features.tokens[number], place))
    result.output("latent", gather_tokens(features.normed(depth), place))
    if "attn_logits_last" in outputs:
        rows = gather_rows(features.attention[depth], place)
        result.output("attn_logits_last", gather_rows(rows.transpose(2, 3), place).transpose(2, 3))
    for number, tokens in inner.items():
        if f"dec_block{number}" in outputs:
            result.output(f"dec_block{number}", tokens)
    result.output("pred", prediction)
    if "unpatchify_pred" in outputs:
        size = result.case.config["patch_size"]
        result.output("unpatchify_pred", unpatchify(prediction[:1], size, features.grid))


def gather_rows(logits: Tensor, place: Tensor) -> Tensor:
    """Rows of [b, heads, t, t] in the order of `place` [b, t]."""
    return logits.gather(2, place[:, None, :, None].expand(-1, logits.shape[1], -1, logits.shape[3]))


def _embeddings(result: Comparison, encoder: Encoder, features: Features, images: Tensor, mask: TokenMask) -> None:
    if "patch_embed" not in result.case.outputs:
        return
    whole = encoder.vit.patch_embed(images)
    result.output("patch_embed", whole)
    # Patches that were embedded alone must equal the same rows of the whole image's.
    assert encoder.vit.pos_embed is not None
    positions = gather_tokens(encoder.vit.pos_embed[:, 1:].expand(len(images), -1, -1), mask.visible)
    expected = gather_tokens(whole, mask.visible)
    result.tensor("patch_embed (visible patches alone)", features.tokens[0][:, features.prefix :] - positions, expected)


def _losses(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask) -> None:
    size, outputs = result.case.config["patch_size"], result.case.outputs
    with torch.no_grad():
        result.output("loss", model.loss(images, mask).loss)
        if "loss_raw_pixels" in outputs:
            branch = replace(model.branches[0], target=PixelTarget(size, normalize=False))
            raw = MaskedImageModel(model.encoder, model.masking, [branch], IDENTITY)
            result.output("loss_raw_pixels", raw.loss(images, mask).loss)
        if "target_patchified" in outputs:
            result.output("target_patchified", patchify(images[:1], size))


def stored_places(ids_shuffle: Tensor, mask: TokenMask) -> Tensor:
    """[b, 1 + v]: for each stored token (class token, then visible ones in shuffle order) its place among ours."""
    kept = ids_shuffle[:, : mask.visible.shape[1]]
    # Ours stand in grid order: a token's place is its rank among the kept positions.
    rank = torch.searchsorted(mask.visible, kept.contiguous())
    return torch.cat([torch.zeros(len(rank), 1, dtype=torch.long), rank + 1], dim=1)
