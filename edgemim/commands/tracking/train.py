"""`edgemim finetune --task tracking`: an encoder learns to find the target of one crop in another."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgemim.commands.fit import fit, refuse_idle
from edgemim.commands.tracking.pictures import paint_pairs
from edgemim.commands.tracking.start import build_tracker, find_tracker_start
from edgemim.data.order import steps_per_epoch
from edgemim.data.stream import BatchStream
from edgemim.data.tracking.loader import build_tracking_loader, held_out_batches
from edgemim.data.tracking.opening import TrackingData, open_tracking_data
from edgemim.data.tracking.pairs import PairBatch
from edgemim.edge.overlay import save_picture
from edgemim.models.one_stream import OneStreamTracker
from edgemim.models.weights import save_model
from edgemim.run import RunRecord
from edgemim.tasks.tracking import TrackingConfig, TrackingTask, tracker_preprocessing
from edgemim.tasks.tracking_losses import corners_of_boxes, iou_and_giou
from edgemim.training.distributed import World, open_world
from edgemim.training.recipe import Plan
from edgemim.training.session import loader_arguments, open_run

if TYPE_CHECKING:
    from edgemim.commands.finetune import FinetuneConfig

TRACKING_RECIPE: dict[str, Any] = {
    "epochs": 300.0,
    "warmup_epochs": 0.0,
    "batch_size": 128,
    "base_lr": 8e-4,
    "min_lr": 0.0,
    "weight_decay": 1e-4,
    "clip_grad": 0.1,
    "drop_path": 0.1,
    "evaluate_every": 20.0,
}
"""Settings of training that differ from a classifier's: OSTrack's (arXiv 2203.11991), whose rate is 4e-4 at batch 128."""

_OF_OTHERS = (
    *("transform", "mixing", "crop_pct", "weights", "val", "relative_positions", "layer_decay"),
    *("pool", "distillation", "classes", "class_balanced", "optimizer"),
)
_EVALUATION_BATCH = 32
_PAINTED = 8


def finetune_tracking(config: FinetuneConfig, task_config: TrackingConfig) -> dict[str, Any]:
    """Train a tracker; writes a run folder and returns what stands in its run.json under 'results'.

    Raises:
        UserError: bad configuration, data, boxes or initial weights; before anything is written.
        SavedOnSignal, Interrupted: after a save on SIGTERM, SIGUSR1 or Ctrl-C.
    """
    refuse_idle(config, task_config.name, _OF_OTHERS)
    config = _absolute(config, task_config)
    pairs = task_config.pairs
    start = find_tracker_start(config.init, config.encoder, task_config.tracker)
    with open_world(config.device) as world:
        plan = Plan.of(config, steps_per_epoch(pairs.pairs_per_epoch, config.batch_size))
        data = open_tracking_data(pairs, config.data, val_share=config.val_share, seed=config.seed)
        torch.manual_seed(config.seed)
        model, note = build_tracker(start, config.drop_path, task_config.score_bias)
        preprocessing = tracker_preprocessing(start.size, **start.statistics)
        task = TrackingTask(model, preprocessing, settings=task_config)
        with open_run("finetune", config, world) as record:
            record.results |= {"init": note, "sources": list(data.summary), "held_out": data.held_out}
            record.results["parameter_counts"] = model.parameter_counts()
            if world.is_main:
                print("\n".join([note, *data.summary, _counted(model)]))
            for warning in data.warnings:
                record.warn(warning)
            _train(config, task_config, task, data, plan, world, record)
    if world.is_main:
        figures = record.results
        print(
            f"mean IoU {figures['mean_iou']:.2f} % on {figures['evaluated_pairs']} held-out pairs "
            f"(the box before, unmoved: {figures['unmoved_mean_iou']:.2f} %)"
        )
        print(f"tracker in {record.folder}/model; next: edgemim export {record.folder} --onnx")
    return record.results


def _absolute(config: FinetuneConfig, task_config: TrackingConfig) -> FinetuneConfig:
    """Paths written down in full: later verbs find the images from wherever they are called."""
    data = None if config.data is None else config.data.absolute()
    return config.model_copy(update={"data": data, "task": task_config})


def _counted(model: OneStreamTracker) -> str:
    counts = model.parameter_counts()
    return (
        f"parameters: tracker {counts['tracker']:,}, of these backbone {counts['backbone']:,}, head {counts['head']:,}"
    )


def build_tracker_optimizer(model: OneStreamTracker, config: FinetuneConfig, backbone_rate: float) -> torch.optim.AdamW:
    """AdamW as published: the backbone at a share of the head's rate (of 0 it is frozen), every parameter decayed."""
    head = {id(parameter) for parameter in model.head.parameters()}
    backbone = [p for p in model.parameters() if id(p) not in head]
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters()), "lr_scale": 1.0}]
    if backbone_rate:
        groups.append({"params": backbone, "lr_scale": backbone_rate})
    for parameter in backbone:
        parameter.requires_grad_(backbone_rate > 0)
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def _train(
    config: FinetuneConfig,
    task_config: TrackingConfig,
    task: TrackingTask,
    data: TrackingData,
    plan: Plan,
    world: World,
    record: RunRecord,
) -> None:
    if world.size > 1 and world.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(task)
    task.to(world.device)
    pairs, size = task_config.pairs, task.model.size
    cut = (size.template_size, size.search_size), (size.template_factor, size.search_factor)
    arguments = loader_arguments(config, plan, world)

    def batches(start: int) -> BatchStream:
        transform = pairs.transform.build(*cut)
        return build_tracking_loader(
            data.train, transform, pairs_per_epoch=pairs.pairs_per_epoch, start_step=start, **arguments
        )

    def held_out(count: int = pairs.held_pairs) -> Generator[PairBatch]:
        transform = pairs.transform.without_chance().build(*cut)
        return held_out_batches(data.val, transform, count=count, batch_size=_EVALUATION_BATCH, seed=config.seed)

    def paint(shown: Generator[Any], name: str) -> None:
        with closing(shown):
            save_picture(paint_pairs(task, next(shown).part(_PAINTED)), record.folder / "pictures" / f"{name}.png")

    def evaluate() -> dict[str, float]:
        paint(held_out(_PAINTED), "held-out-pairs")
        return {"mean_iou": measure(task, held_out())["mean_iou"]}

    fit(
        config,
        task,
        plan,
        world,
        record,
        batches=batches,
        data_fingerprint=data.train.fingerprint,
        evaluate=evaluate,
        optimizer=build_tracker_optimizer(task.model, config, task_config.backbone_rate),
    )
    if world.is_main:
        paint(held_out(_PAINTED), "held-out-pairs")
        paint(iter(batches(plan.total_steps - 1)), "training-pairs")
        record.results |= {**measure(task, held_out()), "evaluated_pairs": pairs.held_pairs}
        save_model(record.folder / "model", task.model.state_dict(), task.facts())


@torch.no_grad()
def measure(task: TrackingTask, batches: Iterable[PairBatch]) -> dict[str, float]:
    """Percent: the mean overlap of found and true boxes, the share of overlaps above one half, and the mean overlap of
    the template's box left in the middle of the search region."""
    task.eval()
    device = next(task.model.parameters()).device
    shrunk = task.model.size.template_factor / task.model.size.search_factor
    overlaps: dict[str, list[torch.Tensor]] = {"found": [], "unmoved": []}
    for batch in batches:
        moved = batch.to(device)
        found = task.predict(moved.template, moved.search, moved.template_box).cpu()
        sides = batch.template_box[:, 2:] * shrunk
        unmoved = torch.cat([0.5 - sides / 2, sides], dim=1)
        true = corners_of_boxes(batch.search_box)
        for name, boxes in (("found", found), ("unmoved", unmoved)):
            overlaps[name].append(iou_and_giou(corners_of_boxes(boxes), true)[0])
    found, unmoved = (torch.cat(overlaps[name]) for name in ("found", "unmoved"))
    figures = {"mean_iou": found, "over_half": (found > 0.5).float(), "unmoved_mean_iou": unmoved}
    return {name: round(100 * float(values.mean()), 3) for name, values in figures.items()}
