"""Golden cases of D-MAE and D2-MAE: student, frozen teacher and adapters of the published wrapper under our names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import TransformerDecoder, TransformerDecoderConfig
from edgemim.methods.distill import D2MaeConfig, DMaeConfig, ExtraLogits, HeadMixer
from edgemim.methods.masking import mask_by_noise
from edgemim.models.convert.mae import plan_mae
from edgemim.models.convert.mae_lite import plan_mae_lite, teacher_weights
from edgemim.models.convert.plan import ENCODER
from edgemim.models.encoder import Encoder, Features, TokenMask, gather_tokens
from edgemim.models.normalization import IDENTITY
from edgemim.models.sizes import VitConfig
from edgemim.models.weights import load_weights
from edgemim.teachers import MaskedTeacher
from tests.golden.case import Case, Comparison
from tests.golden.mae import gather_rows, stored_places
from tests.golden.taps import module_output

_PREFIX = {"student": "model.", "teacher": "tch_model."}


def compare(case: Case) -> Comparison:
    """Run our distillation on the case's weights and inputs."""
    result = Comparison(case)
    teacher = _teacher(case)
    decoupled = "decode_idx" in case.config
    model = (_d2_mae if decoupled else _d_mae)(case, teacher)
    # Every weight but the values of D2's extra block, which none reads.
    plan = plan_mae_lite(case.weights)
    model.load_state_dict(plan.state(case.weights), strict=True)
    images = case.inputs["images"]
    mask = mask_by_noise(case.inputs["noise"], case.config["mask_ratio"])
    place = stored_places(case.inputs["ids_shuffle"], mask)
    with torch.no_grad():
        _student(result, model, images, mask, place)
        _of_teacher(result, teacher, images, mask, place)
        _losses(result, model, images, mask)
    model.loss(images, mask).loss.backward()
    result.gradients(plan.gradients(model.named_parameters()))
    return result.finish()


def _encoder(case: Case, role: str, depth: int) -> Encoder:
    sizes = case.config[role]
    side, patch = case.config["img_size"], case.config["patch_size"]
    config = VitConfig(
        width=sizes["embed_dim"],
        depth=depth,
        heads=sizes["num_heads"],
        patch_size=patch,
        image_size=side,
        mlp_ratio=_mlp_ratio(case, f"{_PREFIX[role]}blocks.", sizes["embed_dim"]),
    )
    return Encoder(config)


def _mlp_ratio(case: Case, blocks: str, width: int) -> float:
    # The configuration is silent about it: the published classes have it as a default.
    return case.weights[f"{blocks}0.mlp.fc1.weight"].shape[0] / width


def _teacher(case: Case) -> MaskedTeacher:
    encoder = _encoder(case, "teacher", case.config["teacher"]["depth"])
    load_weights(encoder.vit, plan_mae(teacher_weights(case.weights)).state(teacher_weights(case.weights), ENCODER))
    return MaskedTeacher(encoder, IDENTITY)


def _decoder(case: Case) -> TransformerDecoderConfig:
    sizes = case.config["student"]
    width, depth, heads = (sizes[f"decoder_{key}"] for key in ("embed_dim", "depth", "num_heads"))
    ratio = _mlp_ratio(case, "model.decoder_blocks.", width)
    return TransformerDecoderConfig(width=width, depth=depth, heads=heads, mlp_ratio=ratio)


def _hidden(case: Case) -> dict[str, Any]:
    layers = tuple(case.config.get("hidden_idx_ext") or ())
    if not layers:
        return {}
    weight = case.config["hidden_alpha"]
    return {"hidden_weight": weight, "hidden_student_layers": layers, "hidden_teacher_layers": layers}


def _d_mae(case: Case, teacher: MaskedTeacher) -> MaskedImageModel:
    layers = tuple(case.config.get("attn_idx_ext") or case.config["attn_idx"])
    method = DMaeConfig(
        mask_ratio=case.config["mask_ratio"],
        decoder=_decoder(case),
        attention_weight=case.config["attn_alpha"],
        student_layers=layers,
        teacher_layers=layers,
        **_hidden(case),
    )
    return method.build(_encoder(case, "student", case.config["student"]["depth"]), IDENTITY, teacher)


def _d2_mae(case: Case, teacher: MaskedTeacher) -> MaskedImageModel:
    depth = case.config["student"]["depth"] - 1  # theirs counts the block that stops at its logits
    assert case.config["std_attn_idx"] == [depth + 1]
    (taught,) = case.config["attn_idx"]
    method = D2MaeConfig(
        mask_ratio=case.config["mask_ratio"],
        decoder=_decoder(case),
        attention_weight=case.config["attn_alpha"],
        pixel_layer=case.config["decode_idx"],
        teacher_layer=taught,
        **_hidden(case),
    )
    return method.build(_encoder(case, "student", depth), IDENTITY, teacher)


def _student(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask, place: Tensor) -> None:
    depth = model.encoder.config.depth
    every = range(1, depth + 1)
    features = model.encoder(images, mask, taps=[0, *every], attention=every)
    for number in every:
        if f"student.block{number}" in result.case.outputs:
            result.output(f"student.block{number}", gather_tokens(features.tokens[number], place))
    pixel = model.branches[0].decoder
    assert isinstance(pixel, TransformerDecoder)
    result.output("student.latent", gather_tokens(pixel.neck(features), place))
    with module_output(pixel.head) as found:
        pixel(features, mask)
    result.output("student.pred_with_cls", found[0])
    _features(result, "student", features, place)
    for branch in model.branches:
        if not isinstance(branch.decoder, HeadMixer):
            continue
        adapted = _shuffle_logits(branch.decoder(features, mask), place)
        for taught in filter(re.compile(_adapted(branch.name)).fullmatch, result.case.outputs):
            result.output(taught, adapted)
        if isinstance(branch.decoder.source, ExtraLogits):
            logits = _shuffle_logits(branch.decoder.source(features), place)
            result.output(f"student.attn_logits{depth + 1}", logits)


def _adapted(branch: str) -> str:
    return r"adapted_logits\d+" if branch == "attention" else f"adapted_logits{branch.rpartition('_')[2]}"


def _features(result: Comparison, whose: str, features: Features, place: Tensor) -> None:
    for number, logits in features.attention.items():
        if f"{whose}.attn_logits{number}" in result.case.outputs:
            result.output(f"{whose}.attn_logits{number}", _shuffle_logits(logits, place))
    for number in features.tokens:
        if f"{whose}.hidden{number}" in result.case.outputs:
            result.output(f"{whose}.hidden{number}", gather_tokens(features.entering(number), place))


def _of_teacher(result: Comparison, teacher: MaskedTeacher, images: Tensor, mask: TokenMask, place: Tensor) -> None:
    depth = teacher.config.depth
    features = teacher(images, mask, taps=range(depth + 1), attention=range(1, depth + 1))
    _features(result, "teacher", features, place)


def _losses(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask) -> None:
    output = model.loss(images, mask)
    result.output("loss", output.loss)
    sums = {"loss_rec": "loss_pixel", "loss_attn": "loss_attention", "loss_hidden": "loss_hidden"}
    for name, start in sums.items():
        if name in result.case.outputs:
            parts = [value for key, value in output.metrics.items() if key.startswith(start)]
            result.output(name, torch.stack(parts).sum())


def _shuffle_logits(logits: Tensor, place: Tensor) -> Tensor:
    return gather_rows(gather_rows(logits, place).transpose(2, 3), place).transpose(2, 3)
