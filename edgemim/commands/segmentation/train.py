"""`edgemim finetune --task segmentation`: an encoder learns to name the class of every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgemim.analysis.segmentation import SegmentationReport, evaluate_segmenter, majority_baseline
from edgemim.commands.fit import fit, refuse_idle
from edgemim.commands.segmentation.initial import Start, find_start, load_start
from edgemim.commands.segmentation.results import Gallery, show_report, write_report
from edgemim.data.loader import BatchStream
from edgemim.data.order import steps_per_epoch
from edgemim.data.segmentation.folder import SegmentationData, check_classes
from edgemim.data.segmentation.loader import build_pair_loader
from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError
from edgemim.models.weights import MODEL_FILE, save_model
from edgemim.run import RunRecord
from edgemim.tasks.segmentation import SegmentationConfig, SegmentationTask, build_segmenter
from edgemim.training.distributed import World, open_world
from edgemim.training.recipe import Plan
from edgemim.training.session import loader_arguments, open_run

if TYPE_CHECKING:
    from edgemim.commands.finetune import FinetuneConfig

_OF_CLASSIFICATION = (
    *("transform", "mixing", "crop_pct", "weights"),
    *("pool", "distillation", "classes", "class_balanced"),
)


def finetune_segmentation(config: FinetuneConfig, task_config: SegmentationConfig) -> dict[str, Any]:
    """Fine-tune a segmentation model; writes a run folder and returns what stands in its run.json under 'results'.

    Raises:
        UserError: bad configuration, data, masks or initial weights; before anything is written.
        SavedOnSignal, Interrupted: after a save on SIGTERM, SIGUSR1 or Ctrl-C.
    """
    refuse_idle(config, task_config.name, _OF_CLASSIFICATION)
    config = _absolute(config, task_config)
    if config.data is None:
        raise UserError("give --data DIR, a folder with images/ and masks/, or ADE20K, Pascal-VOC or CamVid")
    _check_inference(task_config)
    start = find_start(config.init, config.encoder, config.relative_positions, task_config.crop_size)
    with open_world(config.device) as world:
        data = _open(config, task_config)
        plan = Plan.of(config, steps_per_epoch(len(data.train), config.batch_size))
        counts = world.on_main(lambda: (data.train.count_pixels(), data.val.count_pixels()))
        empty = check_classes(counts[0], data.train.classes, data.train.root)
        torch.manual_seed(config.seed)
        task, note = build(config, task_config, data, start)
        with open_run("finetune", config, world) as record:
            record.results["init"] = note
            if world.is_main:
                print(note)
            if empty:
                record.warn(f"classes without a training pixel cannot be learnt: {', '.join(empty)}")
            _train(config, task_config, task, plan, world, record)
            record.results["majority_baseline"] = majority_baseline(*counts, task.labels)
    if world.is_main:
        _say(record)
        print(f"segmentation model in {record.folder}/model; next: edgemim export {record.folder} --onnx")
    return record.results


def _say(record: RunRecord) -> None:
    figures, baseline = record.results, record.results["majority_baseline"]
    print(
        f"mIoU {figures['miou']:.2f} %, pixel accuracy {figures['pixel_accuracy']:.2f} % on "
        f"{figures['evaluated_images']} held-out images (naming every pixel {baseline['class']!r}: "
        f"{baseline['miou']:.2f} %, {baseline['pixel_accuracy']:.2f} %)"
    )


def _absolute(config: FinetuneConfig, task_config: SegmentationConfig) -> FinetuneConfig:
    """Paths written down in full: later verbs find the images from wherever they are called."""
    paths = {name: path.absolute() for name in ("data", "val") if (path := getattr(config, name)) is not None}
    if task_config.classes is not None:
        task_config = task_config.model_copy(update={"classes": task_config.classes.absolute()})
    return config.model_copy(update={**paths, "task": task_config})


def _check_inference(task_config: SegmentationConfig) -> None:
    try:
        task_config.inference.fits(task_config.crop_size)
    except ValueError as error:
        raise UserError(f"task.{error}") from error


def _open(config: FinetuneConfig, task_config: SegmentationConfig) -> SegmentationData:
    assert config.data is not None
    return SegmentationData.open(
        config.data,
        config.val,
        layout=task_config.layout,
        classes=task_config.classes,
        val_share=config.val_share,
        seed=config.seed,
    )


def build(
    config: FinetuneConfig, task_config: SegmentationConfig, data: SegmentationData, start: Start
) -> tuple[SegmentationTask, str]:
    """The task with its initial weights, and a sentence on where they came from. Raises UserError."""
    architecture = {"vit": start.encoder.model_dump(mode="json"), "head": task_config.head.model_dump(mode="json")}
    try:
        model = build_segmenter(architecture, len(data.train.classes), drop_path=config.drop_path)
    except ValueError as error:
        raise UserError(f"task.head: {error}") from error
    note = load_start(model, start, MODEL_FILE)
    preprocessing = Preprocessing(
        image_size=task_config.crop_size, crop_pct=1.0, interpolation="bilinear", **start.statistics
    )
    task = SegmentationTask(
        model, data.train.classes, preprocessing, task_config.inference, data, architecture=architecture
    )
    return task, note


def _train(
    config: FinetuneConfig,
    task_config: SegmentationConfig,
    task: SegmentationTask,
    plan: Plan,
    world: World,
    record: RunRecord,
) -> None:
    if world.size > 1 and world.device.type == "cuda":
        # Two images a process are too few for batch statistics of their own.
        nn.SyncBatchNorm.convert_sync_batchnorm(task)
    task.to(world.device)
    assert task.pairs is not None
    data = task.pairs
    transform = task_config.transform.build(task_config.crop_size, task_config.inference.short_side)
    arguments = loader_arguments(config, plan, world)

    def batches(start: int) -> BatchStream:
        return build_pair_loader(data.train, transform, start_step=start, **arguments)

    def evaluate() -> dict[str, float]:
        report = measure(task)
        return {"miou": report.miou, "pixel_accuracy": report.pixel_accuracy}

    fit(
        config,
        task,
        plan,
        world,
        record,
        batches=batches,
        data_fingerprint=data.train.fingerprint,
        evaluate=evaluate,
    )
    if world.is_main:
        gallery = Gallery(len(data.val))
        report = measure(task, gallery)
        write_report(record, report, gallery)
        record.results["held_out"] = data.held_out
        save_model(record.folder / "model", task.model.state_dict(), task.facts())
        show_report(report)


def measure(task: SegmentationTask, gallery: Gallery | None = None) -> SegmentationReport:
    """Label the run's held-out images and count. Raises UserError."""
    task.eval()
    folder = task.held_out_pairs()
    return evaluate_segmenter(task.predict, folder, show=None if gallery is None else gallery.add)
