"""Golden cases of the hierarchical encoder: the study's distilled masked autoencoder, and the fine-tuned classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.models.hiera import Hiera
from torch import Tensor

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import FuseStages, TransformerDecoder, TransformerDecoderConfig
from edgemim.methods.distill import DMaeConfig, HeadMixer
from edgemim.methods.masking import mask_by_noise, spread_over_patches
from edgemim.models.build import build_encoder
from edgemim.models.convert.hiera import hiera_from_official, plan_hiera, teacher_state
from edgemim.models.encoder import Features, TokenMask
from edgemim.models.hiera import HieraEncoder
from edgemim.models.normalization import IDENTITY
from edgemim.models.sizes import HieraConfig
from edgemim.models.weights import load_weights
from edgemim.tasks.classification import build_model
from edgemim.teachers import MaskedTeacher
from tests.golden.case import Case, Comparison
from tests.golden.mae import gather_rows
from tests.golden.taps import block_outputs, module_output


def compare_mae(case: Case) -> Comparison:
    """Run our distilled masked autoencoder on the case's weights and inputs."""
    result = Comparison(case)
    teacher = _teacher(case)
    model = _model(case, teacher)
    # The study names the last layer first; the adapters' names go by the student's.
    pairs = sorted(zip(case.config["attn_idx"], case.config["tch_attn_idx"], strict=True))
    plan = plan_hiera(case.weights, tuple(taught for _, taught in pairs))
    model.load_state_dict(plan.state(case.weights), strict=True)
    images, config = case.inputs["images"], _encoder(model).config
    units = mask_by_noise(case.inputs["noise"], case.config["mask_ratio"])
    mask = spread_over_patches(units, config.unit, config.grid)
    keep = _encoder(model).units_kept(mask)
    result.output("mask_keep", keep)
    with torch.no_grad():
        _student(result, model, images, mask, keep)
        _attention(result, model, teacher, images, mask, keep)
        _losses(result, model, images, mask)
    model.loss(images, mask).loss.backward()
    result.gradients(plan.gradients(model.named_parameters()))
    return result.finish()


@torch.no_grad()
def compare_classifier(case: Case) -> Comparison:
    """Run the fine-tuning network, and our encoder, on the case's weights and inputs."""
    result = Comparison(case)
    config = _sizes(case, case.config, case.weights)
    state, dropped = hiera_from_official(case.weights)
    assert not dropped
    model = cast(Hiera, build_model({"vit": config.model_dump()}, case.config["num_classes"]))
    load_weights(model, state)
    images = case.inputs["images"]
    tokens, stages = model.eval().forward_intermediates(images, output_fmt="NHWC")
    assert isinstance(tokens, Tensor)
    result.output("features", model.forward_head(tokens, pre_logits=True))
    logits = model(images)
    result.output("logits", logits)
    result.output("eval_output", logits.softmax(-1))
    encoder = build_encoder(config)
    load_weights(encoder.vit, state, may_drop=("head.fc.",))
    features = encoder(images, taps=config.stage_ends)
    for number, (stage, tap) in enumerate(zip(stages, config.stage_ends, strict=True), start=1):
        result.output(f"stage{number}", stage)
        result.output(f"stage{number}", _in_space(features, tap, config), label=f"stage{number} (Encoder)")
    return result.finish()


def _sizes(case: Case, sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> HieraConfig:
    side, other = case.config["input_size"]
    assert side == other, "the encoder reads square images"
    return HieraConfig(
        embed_dim=sizes["embed_dim"],
        first_heads=sizes["num_heads"],
        stages=tuple(sizes["stages"]),
        q_pool=case.config["q_pool"],
        patch_stride=side // math.isqrt(weights["pos_embed"].shape[1]),
        patch_kernel=weights["patch_embed.proj.weight"].shape[-1],
        image_size=side,
        mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] / sizes["embed_dim"],
    )


def _teacher(case: Case) -> MaskedTeacher:
    weights = teacher_state(case.weights)
    encoder = build_encoder(_sizes(case, case.config["teacher"], weights))
    load_weights(encoder.vit, hiera_from_official(weights)[0])
    return MaskedTeacher(encoder, IDENTITY)


def _model(case: Case, teacher: MaskedTeacher) -> MaskedImageModel:
    sizes = case.config["student"]
    student = {key.removeprefix("model."): value for key, value in case.weights.items() if key.startswith("model.")}
    width, depth, heads = (sizes[f"decoder_{key}"] for key in ("embed_dim", "depth", "num_heads"))
    ratio = student["decoder_blocks.0.mlp.fc1.weight"].shape[0] / width
    method = DMaeConfig(
        mask_ratio=case.config["mask_ratio"],
        decoder=TransformerDecoderConfig(width=width, depth=depth, heads=heads, mlp_ratio=ratio),
        attention_weight=case.config["attn_alpha"],
        student_layers=tuple(case.config["attn_idx"]),
        teacher_layers=tuple(case.config["tch_attn_idx"]),
    )
    return method.build(build_encoder(_sizes(case, sizes, student)), IDENTITY, teacher)


def _encoder(model: MaskedImageModel) -> HieraEncoder:
    assert isinstance(model.encoder, HieraEncoder)
    return model.encoder


def _student(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask, keep: Tensor) -> None:
    encoder, pixel = _encoder(model), model.branches[0]
    decoder, neck = pixel.decoder, pixel.decoder.neck
    assert isinstance(decoder, TransformerDecoder) and isinstance(neck, FuseStages)
    with block_outputs(encoder.vit.blocks) as blocks, module_output(encoder.vit.patch_embed) as embedded:
        features = model.encode(images, mask)
    result.output("student.patch_embed", embedded[0][:1])
    for number, tokens in blocks.items():  # in timm's order, which is the published one
        result.output(f"student.block{number}", tokens)
    for number, part in enumerate(neck.parts(features)[:-1]):
        fused = _in_units(part, mask, keep, encoder.config)
        result.output(f"student.fusion{number}", fused.flatten(0, 1).permute(0, 3, 1, 2))
    result.output("student.latent", _in_units(neck(features), mask, keep, encoder.config))
    with module_output(decoder.head) as found:
        decoder(features, mask)
    result.output("student.pred_all", found[0])
    result.output("label_masked", pixel.target(images, mask)[mask.masked])


def _attention(
    result: Comparison, model: MaskedImageModel, teacher: MaskedTeacher, images: Tensor, mask: TokenMask, keep: Tensor
) -> None:
    encoder = _encoder(model)
    students, taught = result.case.config["attn_idx"], result.case.config["tch_attn_idx"]
    features = model.encode(images, mask)
    theirs = teacher(images, mask, attention=taught).attention
    mixers = [branch.decoder for branch in model.branches if isinstance(branch.decoder, HeadMixer)]
    for ours, other, mixer in zip(students, taught, mixers, strict=True):
        places = _published_places(encoder, mask, keep, ours)
        # One layer has no number in its outputs' names.
        mine, its = ("", "") if len(students) == 1 else (str(ours), str(other))
        result.output(f"student.attn_logits{mine}", _shuffled(features.attention[ours], places).unsqueeze(2))
        result.output(f"teacher.attn_logits{its}", _shuffled(theirs[other], places).unsqueeze(2))
        result.output(f"adapted_logits{mine}", _shuffled(mixer(features, mask), places))


def _losses(result: Comparison, model: MaskedImageModel, images: Tensor, mask: TokenMask) -> None:
    output = model.loss(images, mask)
    attention = [value for key, value in output.metrics.items() if key.startswith("loss_attention")]
    result.output("loss", output.loss)
    result.output("loss_rec", output.metrics["loss_pixel"])
    result.output("loss_attn", torch.stack(attention).sum())


def _in_units(tokens: Tensor, mask: TokenMask, keep: Tensor, config: HieraConfig) -> Tensor:
    """Tokens of visible patches in grid order as [b, kept units, rows, columns, c]."""
    (rows, columns), side, (b, _, c) = config.grid, config.unit, tokens.shape
    canvas = tokens.new_zeros(b, rows * columns, c)
    canvas = canvas.scatter(1, mask.visible.unsqueeze(-1).expand(-1, -1, c), tokens)
    cut = canvas.view(b, rows // side, side, columns // side, side, c).transpose(2, 3)
    return cut.reshape(b, -1, side, side, c)[keep].view(b, -1, side, side, c)


def _published_places(encoder: HieraEncoder, mask: TokenMask, keep: Tensor, block: int) -> Tensor:
    """[b, t]: for each token in the published order its place among ours, inside block `block`."""
    split = encoder.config.split_at(block)
    count = mask.visible.shape[1]
    numbers = torch.arange(count * split**2).view(1, -1, 1).expand(len(keep), -1, 1)
    theirs = encoder.vit.reroll(numbers, block - 1, mask=keep).flatten(1)
    # Ours: patch by patch, the tokens of one row by row.
    units = _in_units(numbers.reshape(len(keep), count, split**2), mask, keep, encoder.config)
    ours = units.unflatten(-1, (split, split)).transpose(3, 4).flatten(1)
    return torch.zeros_like(theirs).scatter(1, theirs, ours)


def _shuffled(logits: Tensor, places: Tensor) -> Tensor:
    return gather_rows(gather_rows(logits, places).transpose(2, 3), places).transpose(2, 3)


def _in_space(features: Features, tap: int, config: HieraConfig) -> Tensor:
    (rows, columns), split, tokens = config.grid, config.split_at(tap), features.tokens[tap]
    cut = tokens.view(len(tokens), rows, columns, split, split, -1).transpose(2, 3)
    return cut.reshape(len(tokens), rows * split, columns * split, -1)
