"""Golden case of Semantic-FPN: the study's pyramid on a ViT with relative positions, the head, its loss and sliding
windows."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from edgemim.models.semantic_fpn import SemanticFpn, SemanticFpnConfig, resized, slide_logits
from edgemim.models.sizes import RelativeVitConfig
from edgemim.models.weights import load_weights
from edgemim.tasks.segmentation import pixel_accuracy, segmentation_loss
from tests.golden.case import Case, Comparison
from tests.golden.taps import module_output

_INDEX = "relative_position_index"

# From the original's names to ours, in this order.
_NAMES = (
    (r"^backbone\.layers\.", "encoder.vit.blocks."),
    (r"^backbone\.", "encoder.vit."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.ln(\d)\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^neck\.upsample_4x\.", "pyramid.0."),
    (r"^neck\.upsample_2x\.", "pyramid.1."),
    (r"^neck\.identity\.", "pyramid.2."),
    (r"^neck\.downsample_2x\.", "pyramid.3."),
    (r"^decode_head\.scale_heads\.", "head.levels."),
    (r"^decode_head\.conv_seg\.", "head.classify."),
)


def compare(case: Case) -> Comparison:
    """Run the library's network on the case's weights and inputs."""
    result = Comparison(case)
    model = _network(case)
    ours = {_renamed(name): name for name in case.weights}
    buffers = dict(model.named_buffers())
    for name, original in ours.items():
        if name.endswith(_INDEX):
            result.tensor(original, buffers[name], case.weights[original])
    trained = {name: case.weights[original] for name, original in ours.items() if not name.endswith(_INDEX)}
    load_weights(model, trained, may_miss=("encoder.vit.norm.",))
    with torch.no_grad():
        _evaluate(result, model.eval())
    _train(result, model.train(), ours)
    return result.finish()


def _network(case: Case) -> SemanticFpn:
    config = case.config
    encoder = RelativeVitConfig(
        width=config["embed_dims"],
        depth=config["num_layers"],
        heads=config["num_heads"],
        patch_size=config["patch"],
        image_size=config["img"],
        mlp_ratio=config["mlp_ratio"],
        layer_scale=config["init_values"],
    )
    head = SemanticFpnConfig(
        taps=tuple(index + 1 for index in config["out_indices"]),
        neck_scale=config["scale_factor"],
        channels=config["channels"],
        dropout=0.0,
    )
    return SemanticFpn(encoder, head, config["num_classes"])


def _renamed(name: str) -> str:
    for original, ours in _NAMES:
        name = re.sub(original, ours, name)
    return name


def _evaluate(result: Comparison, model: SemanticFpn) -> None:
    inputs, config = result.case.inputs, result.case.config
    for number, tap in enumerate(model.maps(inputs["images"])):
        result.output(f"eval.backbone{number}", tap)
    with (
        module_output(model.pyramid[0]) as first,
        module_output(model.pyramid[1]) as second,
        module_output(model.pyramid[2]) as third,
        module_output(model.pyramid[3]) as fourth,
    ):
        logits = model.coarse_logits(inputs["images"])
    for number, level in enumerate((first, second, third, fourth)):
        result.output(f"eval.pyramid{number}", level[0])
    result.output("eval.seg_logits_stride4", logits)
    slid = slide_logits(model, inputs["slide_image"], config["crop"], config["stride"])
    result.output("eval.slide_logits", slid)


def _train(result: Comparison, model: SemanticFpn, ours: dict[str, str]) -> None:
    labels = result.case.inputs["labels"][:, 0].long()
    logits = resized(model.coarse_logits(result.case.inputs["images"]), labels.shape[-2:])
    loss = segmentation_loss(logits, labels)
    result.output("train.loss_ce", loss)
    result.output("train.acc_seg", 100 * pixel_accuracy(logits, labels).reshape(1))
    loss.backward()
    gradients: dict[str, Tensor] = {
        ours[name]: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None
    }
    result.gradients(gradients)
