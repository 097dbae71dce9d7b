"""Golden case of MIRL: PaddlePaddle's weights, linear ones transposed, under our names."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import TransformerDecoderConfig
from edgemim.methods.masking import mask_by_noise
from edgemim.methods.mirl import LevelFeatures, Levels, MirlConfig, PairDecoder, SegmentDecoder
from edgemim.models.convert.mirl import plan_mirl
from edgemim.models.encoder import Encoder, TokenMask, gather_tokens
from edgemim.models.normalization import IDENTITY
from edgemim.models.sizes import VitConfig
from tests.golden.case import Case, Comparison
from tests.golden.mae import stored_places
from tests.golden.taps import module_output


def compare(case: Case) -> Comparison:
    """Run our MIRL on the case's weights and inputs."""
    result = Comparison(case)
    model = _build(case)
    segments = len(_decoders(model))
    plan = plan_mirl(case.weights)
    model.load_state_dict(plan.state(case.weights), strict=True)
    for number, decoder in enumerate(_decoders(model)):
        label = f"decoder_pos_embed{number} (computed)"
        result.tensor(label, decoder.positions, case.weights[f"decoder_pos_embed{number}"])
        # The gain that we do not keep is 1.
        gain = case.weights[f"decoder_pred{number}.weight_g"]
        result.tensor(f"decoder_pred{number}.weight_g", torch.ones_like(gain), gain)
    images = case.inputs["images"]
    mask = mask_by_noise(case.inputs["noise"], case.config["mask_ratio"])
    result.output("mask", mask.masked.float())
    with torch.no_grad():
        _forward(result, model, images, mask)
    output = model.loss(images, mask)
    result.output("loss", output.loss)
    for pair in range(segments // 2):
        result.output(f"loss_pair{pair}", output.metrics[f"loss_pair_{pair + 1}"])
    output.loss.backward()
    result.gradients(plan.gradients(model.named_parameters()))
    return result.finish()


def _build(case: Case) -> MaskedImageModel:
    sizes = case.config
    names = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch_size": "patch_size"}
    names |= {"image_size": "img_size", "mlp_ratio": "mlp_ratio"}
    encoder = Encoder(VitConfig.model_validate({ours: sizes[original] for ours, original in names.items()}))
    decoder = TransformerDecoderConfig(
        width=sizes["decoder_embed_dim"],
        depth=sizes["decoder_depth"],
        heads=sizes["decoder_num_heads"],
        mlp_ratio=sizes["mlp_ratio"],
    )
    taps = (*(index + 1 for index in sizes["out_indices"]), sizes["depth"])
    # Where they cut the encoder evenly, the published rule itself is compared.
    evenly = taps == tuple(sizes["depth"] * part // len(taps) for part in range(1, len(taps) + 1))
    chosen = {"segments": len(taps)} if evenly and sizes["depth"] % len(taps) == 0 else {"taps": taps}
    method = MirlConfig.model_validate({"mask_ratio": sizes["mask_ratio"], "decoder": decoder, **chosen})
    model = method.build(encoder, IDENTITY, None)
    assert model.taps == (0, *taps)
    return model


def _decoders(model: MaskedImageModel) -> list[SegmentDecoder]:
    pairs = [pair for pair in model.decoders.values() if isinstance(pair, PairDecoder)]
    return [pair.main for pair in pairs] + [pair.residual for pair in reversed(pairs)]


def _forward(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask) -> None:
    place = stored_places(result.case.inputs["ids_shuffle"], mask)
    depth = model.encoder.config.depth
    for number, tokens in model.encoder(images, mask, taps=range(1, depth + 1)).tokens.items():
        if f"block{number}" in result.case.outputs:
            result.output(f"block{number}", gather_tokens(tokens, place))
    assert isinstance(model.neck, Levels)
    norms = [*model.neck.norms, model.encoder.vit.norm]
    for number, norm in enumerate(norms):
        with module_output(norm) as found:
            features = model.encode(images, mask)
        result.output("level0_norm" if number == 0 else f"tap{number}_normed", gather_tokens(found[0], place))
    assert isinstance(features, LevelFeatures)
    for number, decoder in enumerate(_decoders(model)):
        result.output(f"decoder{number}_tokens", decoder.tokens(features, mask))
        result.output(f"pred{number}", decoder(features, mask))
        if f"effective_pred_weight{number}" in result.case.outputs:
            result.output(f"effective_pred_weight{number}", decoder.head.weight.T)
