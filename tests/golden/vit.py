"""Golden cases of fine-tuned vision transformers, plain and with relative positions: the classifier that fine-tuning
builds, and our encoder's taps and logits."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemim.models.build import build_encoder
from edgemim.models.sizes import RelativeVitConfig, VitConfig
from edgemim.models.weights import bare_vit, load_weights
from edgemim.tasks.classification import build_model
from tests.golden.case import Case, Comparison, NotCovered
from tests.golden.taps import block_outputs, module_output

_INDEX = "relative_position_index"


def compare(case: Case) -> Comparison:
    """Run the fine-tuning network on the case's weights and inputs."""
    result = Comparison(case)
    sizes = _sizes(case)
    classes = case.config["num_classes"]
    model: Any
    # The study's two files say the same under two names.
    if case.config.get("use_mean_pooling", case.config.get("global_pool")):
        model = build_model({"vit": sizes.model_dump()}, classes)
    else:
        model = bare_vit(sizes, num_classes=classes, global_pool="token")
    load_weights(model, _trained(case))
    own = dict(model.named_buffers())
    for name in sorted(case.weights.keys() - _trained(case).keys()):
        result.tensor(name, own[name], case.weights[name])
    images, labels = case.inputs["images"], case.inputs["labels"]

    with ExitStack() as stack:
        blocks = stack.enter_context(block_outputs(model.blocks))
        patches = stack.enter_context(module_output(model.patch_embed))
        norms = [stack.enter_context(module_output(block.norm1)) for block in model.blocks]
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        logits = model.head(features)
    inner = {"patch_embed": patches[0]}
    for number, tokens in blocks.items():
        inner |= {f"block{number}": tokens, f"norm1_{number}": norms[number - 1][0]}
    final = model.norm if isinstance(model.fc_norm, nn.Identity) else model.fc_norm
    inner["hidden_last"] = final(blocks[sizes.depth])
    for name in sorted(inner.keys() & case.outputs.keys()):
        result.output(name, inner[name])
    result.output("features", features)
    result.output("logits", model(images))
    loss = F.cross_entropy(logits, labels)
    result.output("loss_ce", loss)
    loss.backward()
    result.gradients({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    _encoder_taps(result, sizes, images)
    return result.finish()


def _trained(case: Case) -> dict[str, Tensor]:
    """The weights without the numbers of offsets, which follow from the grid."""
    return {name: value for name, value in case.weights.items() if not name.endswith(_INDEX)}


def _sizes(case: Case) -> VitConfig:
    names = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch_size": "patch_size"}
    names |= {"image_size": "img_size", "mlp_ratio": "mlp_ratio"}
    sizes = {ours: case.config[original] for ours, original in names.items()}
    if "use_rel_pos_bias" not in case.config:
        return VitConfig.model_validate(sizes)
    own, shared = case.config["use_rel_pos_bias"], case.config["use_shared_rel_pos_bias"]
    plain = case.config.get("use_abs_pos_emb") and not (case.config["qv_bias"] or case.config.get("init_values"))
    if not (own or shared) and plain and case.config["qkv_bias"]:
        return VitConfig.model_validate(sizes)  # a plain one after all
    if not (own or shared) or not case.config["qkv_bias"]:
        raise NotCovered(f"{case.name} without offsets or biases")
    relative = {
        "offsets": "both" if own and shared else "block" if own else "shared",
        "absolute_positions": case.config["use_abs_pos_emb"],
        "key_bias": not case.config["qv_bias"],
        "layer_scale": case.config.get("init_values") or None,
    }
    return RelativeVitConfig.model_validate(sizes | relative)


@torch.no_grad()
def _encoder_taps(result: Comparison, sizes: VitConfig, images: Tensor) -> None:
    """The same weights in our encoder give the same tokens between its blocks, and the logits inside them."""
    encoder = build_encoder(sizes)
    load_weights(encoder.vit, _trained(result.case), may_drop=("head.", "fc_norm."), may_miss=("norm.",))
    every = range(1, sizes.depth + 1)
    features = encoder(images, taps=every, attention=every)
    for number in every:
        if f"block{number}" in result.case.outputs:
            result.output(f"block{number}", features.tokens[number], label=f"block{number} (Encoder)")
        for name in (f"attn_logits{number}", "attn_logits_last" if number == sizes.depth else ""):
            if name in result.case.outputs:
                result.output(name, features.attention[number])
