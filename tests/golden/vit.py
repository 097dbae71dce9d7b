"""Golden cases of fine-tuned plain vision transformers: the classifier that fine-tuning builds, and our encoder's taps."""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from edgemim.models.encoder import Encoder
from edgemim.models.sizes import VitConfig
from edgemim.models.weights import bare_vit, load_weights
from edgemim.tasks.classification import build_model
from tests.golden.case import Case, Comparison
from tests.golden.taps import block_outputs, module_output


def compare(case: Case) -> Comparison:
    """Run the fine-tuning network on the case's weights and inputs."""
    result = Comparison(case)
    sizes = _sizes(case)
    classes = case.config["num_classes"]
    if case.config["global_pool"]:
        model = build_model({"vit": sizes.model_dump()}, classes)
    else:
        model = bare_vit(sizes, num_classes=classes, global_pool="token")
    load_weights(model, case.weights)
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


def _sizes(case: Case) -> VitConfig:
    names = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch_size": "patch_size"}
    names |= {"image_size": "img_size", "mlp_ratio": "mlp_ratio"}
    return VitConfig.model_validate({ours: case.config[original] for ours, original in names.items()})


@torch.no_grad()
def _encoder_taps(result: Comparison, sizes: VitConfig, images: Tensor) -> None:
    """The same weights in our encoder give the same tokens between its blocks."""
    encoder = Encoder(sizes)
    load_weights(encoder.vit, result.case.weights, may_drop=("head.", "fc_norm."), may_miss=("norm.",))
    every = range(1, sizes.depth + 1)
    features = encoder(images, taps=every, attention=every)
    for number in every:
        if f"block{number}" in result.case.outputs:
            result.output(f"block{number}", features.tokens[number], label=f"block{number} (Encoder)")
        if f"attn_logits{number}" in result.case.outputs:
            result.output(f"attn_logits{number}", features.attention[number])
