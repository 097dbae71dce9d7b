"""Golden cases of the one-stream tracker: blocks, elimination, maps, losses and boxes; targets, windows and crops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemim.edge.tracking.boxes import Box, clip_box
from edgemim.edge.tracking.crop import crop_square, padding_mask
from edgemim.edge.tracking.decode import Decoded, decode_maps, hann_window, to_image
from edgemim.models.center_head import TrackMaps, decode_boxes
from edgemim.models.convert.ostrack import ostrack_size, plan_ostrack
from edgemim.models.elimination import Elimination, keep_rate, template_attention, template_mask
from edgemim.models.one_stream import OneStreamTracker, interpolate_positions, project
from edgemim.models.tracker_sizes import Rows, TrackerForm, TrackerSize
from edgemim.models.weights import load_weights
from edgemim.tasks.tracking import TrackingTask, TrackingTraining, tracker_preprocessing
from edgemim.tasks.tracking_losses import (
    corners_of_boxes,
    corners_of_centres,
    focal_loss,
    gaussian_maps,
    iou_and_giou,
    tracking_losses,
)
from tests.golden.case import Case, Comparison

_ROWS: dict[str, Rows] = {"CTR_POINT": "point", "CTR_REC": "rectangle", "GT_BOX": "box", "ALL": "all"}


def compare(case: Case) -> Comparison:
    """Run the library's tracker on the case's weights and inputs."""
    result = Comparison(case)
    size = _size(case)
    model = OneStreamTracker(size)
    plan = plan_ostrack(case.weights)
    load_weights(model, plan.state(case.weights))
    _positions(result, size)
    _keep_rates(result)
    with torch.no_grad():
        _evaluate(result, model.eval())
    _train(result, model.train())
    result.gradients(plan.gradients(model.named_parameters()))
    for name in case.outputs:
        found = re.fullmatch(r"train\.bn_running_(mean|var)_after\.(.+)", name)
        if found:
            ours = plan.moves[f"{found[2]}.running_{found[1]}"].name
            result.output(name, dict(model.named_buffers())[ours])
    return result.finish()


def _size(case: Case) -> TrackerSize:
    config = case.config
    form = TrackerForm(
        elimination=bool(config["ce_loc"]),
        elimination_blocks=tuple(block + 1 for block in config["ce_loc"]),
        keep=tuple(config["ce_keep_ratio"]) or (1.0,),
        ranked_by=_ROWS[config["ce_range"]],
    )
    return ostrack_size(case.weights, config["num_heads"], form)


def _positions(result: Comparison, size: TrackerSize) -> None:
    """The tables of a tracker that begins with this file's encoder are those that the file's tracker began with."""
    base, weights = size.encoder.grid, result.case.weights
    if "backbone.pos_embed" not in weights or result.case.recording is not None:
        return
    for name, side in (("pos_embed_z", size.template_grid), ("pos_embed_x", size.search_grid)):
        ours = interpolate_positions(weights["backbone.pos_embed"][:, 1:], base, side)
        result.tensor(f"backbone.{name} (interpolated)", ours, weights[f"backbone.{name}"])


def _keep_rates(result: Comparison) -> None:
    config, scalars = result.case.config, result.case.facts.get("scalars", {})
    expected = scalars.get("keep_rate_by_epoch", {})
    if expected:
        start, end = config["ce_start"], config["ce_start"] + config["ce_warm"]
        ours = {epoch: keep_rate(int(epoch), start, end, config["ce_keep_ratio"][0]) for epoch in expected}
        result.numbers("keep_rate_by_epoch", ours, {key: float(value) for key, value in expected.items()}, 1e-9)


@contextmanager
def _observed(model: OneStreamTracker) -> Iterator[dict[int, Tensor]]:
    """Tokens after each block: an eliminating one is not called whole, so what enters the next one is taken."""
    found: dict[int, Tensor] = {}

    def keep(number: int):
        return lambda _module, inputs: found.__setitem__(number, inputs[0])

    entrances = [*(block.norm1 for block in list(model.vit.blocks)[1:]), model.vit.norm]
    handles = [norm.register_forward_pre_hook(keep(number)) for number, norm in enumerate(entrances, start=1)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _evaluate(result: Comparison, model: OneStreamTracker) -> None:
    inputs, size = result.case.inputs, model.size
    template, search, box = inputs["template_images"], inputs["search_images"], inputs["template_anno"]
    mask = template_mask(
        size.ranked_by, size.template_grid, len(template), patch_size=size.encoder.patch_size, boxes=box
    )
    result.output("ce_template_mask", mask)
    with _observed(model) as blocks:
        features = model.features(template, search, template_box=box)
    for number, tokens in blocks.items():
        result.output(f"eval.block{number}", tokens)
    result.output("eval.backbone_feat", torch.cat([features.template, features.search], dim=1))
    if size.drops:
        entering = blocks[size.drops[0] - 1] if size.drops[0] > 1 else _embedded(model, template, search)
        result.output("eval.attn_first_ce_block", _looked_at(model, size.drops[0], entering))
    _eliminated(result, "eval", features.eliminated)
    maps = model(template, search, template_box=box)
    _maps(result, "eval", maps)
    hann = torch.from_numpy(hann_window(size.search_grid).copy())
    result.output("hann_window", hann[None, None])
    windowed = decode_boxes(maps, hann)
    result.output("eval.pred_boxes_hann", windowed)
    _in_image(result, maps, hann_window(size.search_grid))
    whole = model(template, search, keep_rate=1.0)
    _maps(result, "eval.no_elimination", whole)


def _embedded(model: OneStreamTracker, template: Tensor, search: Tensor) -> Tensor:
    names = ("template_positions", "search_positions")
    return torch.cat([model._embed(crop, name) for crop, name in zip((template, search), names, strict=True)], dim=1)


def _looked_at(model: OneStreamTracker, number: int, entering: Tensor) -> Tensor:
    block: Any = model.vit.blocks[number - 1]
    q, k, _ = project(block.attn, block.norm1(entering))
    return template_attention(q[:, :, : model.size.template_grid**2], k, block.attn.scale)


def _eliminated(result: Comparison, mode: str, eliminated: Mapping[int, Elimination]) -> None:
    for number, elimination in eliminated.items():
        result.output(f"{mode}.kept_search_index_after_block{number}", elimination.kept)
        result.output(f"{mode}.removed_search_index_block{number}", elimination.removed)


def _maps(result: Comparison, mode: str, maps: TrackMaps) -> None:
    for name, ours in zip(("score_map", "offset_map", "size_map"), maps, strict=True):
        result.output(f"{mode}.{name}", ours)
    result.output(f"{mode}.pred_boxes", decode_boxes(maps)[:, None])


def _in_image(result: Comparison, maps: TrackMaps, window: np.ndarray) -> None:
    """The edge's own decoding of the same maps, mapped into the image of the case."""
    score, offset, size = (part.numpy() for part in maps)
    rows = [slice(row, row + 1) for row in range(len(score))]
    boxes = [decode_maps(score[row], size[row], offset[row], window) for row in rows]
    ours = torch.tensor([box[:4] for box in boxes])
    result.output("eval.pred_boxes_hann", ours, label="eval.pred_boxes_hann (numpy)")
    facts = result.case.facts.get("scalars", {}).get("map_box_back")
    if facts:
        mapped = to_image(
            Decoded(*boxes[0]), Box.of(np.array(facts["state_xywh"])), facts["search_size"] / facts["resize_factor"]
        )
        result.output("eval.box_in_image_unclipped", torch.tensor(mapped))
        height, width = facts["image_HW"]
        result.output("eval.box_in_image", torch.tensor(clip_box(mapped, width, height, margin=facts["margin"])))


def _train(result: Comparison, model: OneStreamTracker) -> None:
    """The task's own step, then its parts."""
    config, inputs = result.case.config, result.case.inputs
    scalars = result.case.facts.get("scalars", {})
    rate = scalars.get("train_keep_rate", config["ce_keep_ratio"][0] if config["ce_keep_ratio"] else 1.0)
    settings = TrackingTraining(focal_weight=config["focal"], giou_weight=config["giou"], l1_weight=config["l1"])
    task = TrackingTask(model, tracker_preprocessing(model.size, mean=(0, 0, 0), std=(1, 1, 1)), settings=settings)
    task.train()
    task._keep_rate = rate
    boxes = inputs["search_anno"]
    caught: dict[str, Any] = {}
    run = model.features

    def features(*arguments: Any, **options: Any) -> Any:
        caught["features"] = run(*arguments, **options)
        return caught["features"]

    handle = model.head.register_forward_hook(lambda _module, _inputs, output: caught.__setitem__("maps", output))
    model.features = features  # pyright: ignore[reportAttributeAccessIssue]
    labels = (inputs["template_images"], inputs["template_anno"], boxes)
    output = task(inputs["search_images"], torch.zeros(len(boxes)), labels)
    handle.remove()
    output.loss.backward()
    maps = caught["maps"]
    _eliminated(result, "train", caught["features"].eliminated)
    _maps(result, "train", maps)
    losses = tracking_losses(maps, boxes)
    result.output("train.gt_heatmap", gaussian_maps(boxes, model.size.search_grid))
    result.output("train.loss", output.loss)
    result.output("train.loss_focal", losses.focal)
    result.output("train.loss_giou", losses.giou)
    result.output("train.loss_l1", losses.l1)
    result.output("train.mean_iou", losses.mean_iou)


def compare_targets(case: Case) -> Comparison:
    """Heat maps, losses of given boxes, template masks, windows and crops, whichever the case holds, at its sizes."""
    result = Comparison(case)
    inputs = case.inputs
    boxes = inputs["boxes_xywh"]
    for name in case.outputs:
        if found := re.fullmatch(r"heatmap_(\d+)_(\d+)", name):
            result.output(name, gaussian_maps(boxes, int(found[1]) // int(found[2])))
        elif found := re.fullmatch(r"hann_(\d+)", name):
            result.output(name, torch.from_numpy(hann_window(int(found[1])).copy()))
    _losses(result)
    _masks(result)
    _crops(result)
    return result.finish()


def _losses(result: Comparison) -> None:
    inputs = result.case.inputs
    score = inputs["pred_score"]
    heat = gaussian_maps(inputs["boxes_xywh"], score.shape[-1])
    result.output("focal_loss", focal_loss(score, heat))
    result.output("focal_loss_no_positive", focal_loss(score, heat * 0.9))
    predicted = corners_of_centres(inputs["pred_cxcywh"])
    true = corners_of_boxes(inputs["boxes_xywh"]).clamp(0, 1)
    result.output("pred_xyxy", predicted)
    result.output("gt_xyxy_clamped", true)
    overlap, generalised = iou_and_giou(predicted, true)
    result.output("iou", overlap)
    result.output("giou", generalised)
    result.output("giou_loss", (1 - generalised).mean())
    result.output("l1_loss", torch.nn.functional.l1_loss(predicted, true))


def _masks(result: Comparison) -> None:
    """Published for templates of 128 pixels and patches of 16; of others the case says the sizes."""
    boxes = result.case.inputs.get("template_boxes_xywh")
    if boxes is None:
        return
    for published, ours in _ROWS.items():
        expected = result.case.outputs.get(f"mask_{published}")
        if expected is not None:
            grid, patch = _template_sizes(result.case, f"mask_{published}", expected.shape[-1])
            result.output(f"mask_{published}", template_mask(ours, grid, len(boxes), patch_size=patch, boxes=boxes))


def _template_sizes(case: Case, name: str, tokens: int) -> tuple[int, int]:
    """Tokens along a side and pixels of a patch, the latter as the case describes it."""
    text = str(case.facts.get("outputs", {}).get(name, {}).get("what", ""))
    found = re.search(r"stride (\d+)", text)
    return round(tokens**0.5), int(found[1]) if found else 16


def _crops(result: Comparison) -> None:
    inputs, outputs = result.case.inputs, result.case.outputs
    if "image_uint8_hwc" not in inputs:
        return
    image = inputs["image_uint8_hwc"].numpy()
    described = _described(result.case)
    for name in outputs:
        if found := re.fullmatch(r"crop(\d+)([a-z]+)", name):
            box = Box.of(inputs["crop_boxes_xywh"][int(found[1])].numpy())
            factor, size = described[found[2]]
            crop = crop_square(image, box, factor, size)
            # cv2's versions differ by a level, and the case says so.
            if result.case.recording is None:
                result.statistic(name, torch.from_numpy(crop.pixels), outputs[name], allowed=1.0)
            else:
                result.output(name, torch.from_numpy(crop.pixels))
            result.output(f"{name}.resize_factor", torch.tensor(crop.resize_factor))
            mask = padding_mask(crop, *image.shape[:2])
            result.output(f"{name}.padmask", torch.from_numpy(mask))


def _described(case: Case) -> dict[str, tuple[float, int]]:
    """Factor and size in pixels by the suffix of a crop's name, from the case's own words."""
    words = re.findall(r"suffix (\w+): (?:area )?factor ([\d.]+), size (\d+)", str(case.config.get("crop", "")))
    return {suffix: (float(factor), int(size)) for suffix, factor, size in words}
