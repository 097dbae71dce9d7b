"""Golden case of DeepMIM-CLIP: four decoders on four taps, features as target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import TransformerDecoder, TransformerDecoderConfig
from edgemim.methods.deepmim import DeepMimConfig
from edgemim.methods.masking import mask_by_noise
from edgemim.models.convert.deepmim import plan_deepmim
from edgemim.models.encoder import Encoder, TokenMask, gather_tokens
from edgemim.models.normalization import IDENTITY
from edgemim.models.sizes import VitConfig
from tests.golden.case import Case, Comparison
from tests.golden.mae import stored_places
from tests.golden.taps import module_output


class GivenFeatures(nn.Module):
    """Stands for the teacher whose features the case holds."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features, self.channels = features, features.shape[-1]

    def forward(self, images: Tensor) -> Tensor:
        """The stored features of every patch."""
        return self.features


def compare(case: Case) -> Comparison:
    """Run our DeepMIM on the case's weights and inputs."""
    result = Comparison(case)
    model = _build(case)
    taps = case.config["taps"]
    for tap in taps:
        decoder = _decoder(model, tap)
        result.tensor(f"decoder_pos_embed (computed, {tap})", decoder.positions, case.weights["decoder_pos_embed"])
    plan = plan_deepmim(case.weights, tuple(taps))
    model.load_state_dict(plan.state(case.weights), strict=True)
    images = case.inputs["images"]
    mask = mask_by_noise(case.inputs["noise"], case.config["mask_ratio"])
    result.output("mask", mask.masked.float())
    with torch.no_grad():
        _forward(result, model, images, mask)
    output = model.loss(images, mask)
    result.output("loss", output.loss)
    for number, tap in enumerate(taps, start=1):
        result.output(f"loss{number}", output.metrics[f"loss_block_{tap}"])
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
    method = DeepMimConfig(mask_ratio=sizes["mask_ratio"], target="feature", taps=tuple(sizes["taps"]), decoder=decoder)
    teacher = GivenFeatures(case.inputs["teacher_out"][:, 1:])
    return method.build(encoder, IDENTITY, teacher)


def _decoder(model: MaskedImageModel, tap: int) -> TransformerDecoder:
    decoder = model.decoders[f"block_{tap}"]
    assert isinstance(decoder, TransformerDecoder)
    return decoder


def _forward(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask) -> None:
    taps = result.case.config["taps"]
    place = stored_places(result.case.inputs["ids_shuffle"], mask)
    features = model.encode(images, mask)
    for number, tap in enumerate(taps, start=1):
        decoder = _decoder(model, tap)
        last = tap == model.encoder.config.depth
        result.output("latent_final" if last else f"latent{tap}", gather_tokens(decoder.neck(features), place))
        with module_output(decoder.head) as found:
            decoder(features, mask)
        if f"pred{number}" in result.case.outputs:
            result.output(f"pred{number}", found[0])
