"""`edgemim finetune`: a pre-trained encoder becomes a classifier, or by `segmentation.train` names pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import torch

from edgemim.analysis.accuracy import AccuracyReport, evaluate_classifier
from edgemim.commands.fit import fit
from edgemim.commands.initial import Start, build_start, find_start
from edgemim.commands.segmentation.train import finetune_segmentation
from edgemim.data.loader import BatchStream, build_loader, eval_loader, steps_per_epoch
from edgemim.data.transforms import FinetuneTransform
from edgemim.edge.images import Preprocessing
from edgemim.edge.report import plot_confusion, save_figure
from edgemim.errors import UserError
from edgemim.models.sizes import EncoderConfig, RelativePositionsConfig, VitConfig
from edgemim.models.weights import save_model
from edgemim.run import RunRecord
from edgemim.tasks import TaskConfig
from edgemim.tasks.classification import ClassificationConfig, ClassificationTask, MixingConfig
from edgemim.tasks.segmentation import SEGMENTATION_RECIPE, SegmentationConfig
from edgemim.tasks.task import LabelledData
from edgemim.training.distributed import World, open_world
from edgemim.training.recipe import Plan, TrainingConfig
from edgemim.training.session import loader_arguments, open_run

_RECIPES: dict[object, dict[str, Any]] = {"segmentation": SEGMENTATION_RECIPE}
"""Defaults of a task's own."""


class FinetuneConfig(TrainingConfig):
    """Fine-tune on labelled images, with the improved lightweight recipe (arXiv 2205.14443 and its published code).

    Example: edgemim finetune --task classification --init runs/pretrain-... --data photos/ --epochs 100
    """

    task: TaskConfig = ClassificationConfig()
    """What is learnt: classification, or segmentation with defaults of its own."""
    data: Path | None = None
    """Folder with one sub-folder a class, or with train/ and val/ (or test/) of such; of a segmentation set, its root."""
    val: Path | None = None
    """Held-out images, laid out alike; else the set's own split, else a share of the data."""
    val_share: float = pydantic.Field(default=0.1, gt=0, lt=1)
    """Share (of each class) that is held out where there is no split."""
    init: str = "newest"
    """Where the weights come from: a pre-training run's folder, newest, scratch, or timm:NAME."""
    weights: Path | None = None
    """Weights file for timm:NAME, instead of timm's download."""
    encoder: EncoderConfig = VitConfig()
    """The network, for --init scratch (a run brings its own)."""
    relative_positions: RelativePositionsConfig | None = None
    """Relative positions that a plain vision transformer learns beside what it knows; none by default."""
    transform: FinetuneTransform = FinetuneTransform()
    """Augmentation."""
    mixing: MixingConfig = MixingConfig()
    """mixup, CutMix and label smoothing."""
    crop_pct: float = pydantic.Field(default=0.875, gt=0, le=1)
    """Part of the short side that the evaluation crop keeps."""
    layer_decay: float = pydantic.Field(default=0.85, gt=0, le=1)
    """A layer's learning rate over that of the layer above it (0.85 for MAE, 0.75 for MoCo-v3)."""
    drop_path: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Largest rate of stochastic depth."""
    evaluate_every: float = pydantic.Field(default=10.0, ge=0)
    """Epochs between two evaluations; 0 evaluates at the end alone."""
    epochs: float = pydantic.Field(default=300.0, gt=0)
    """Passes over the images."""
    warmup_epochs: float = pydantic.Field(default=5.0, ge=0)
    """Epochs of linear warm-up from 0."""
    base_lr: float = pydantic.Field(default=1e-3, gt=0)
    """Peak learning rate for a batch of 256; scaled linearly with the batch size."""
    min_lr: float = pydantic.Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's momenta."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, data: Any) -> Any:
        """What is not said is the task's own recipe."""
        named = data.get("task") if isinstance(data, dict) else None
        name = named.get("name") if isinstance(named, dict) else getattr(named, "name", named)
        return {**_RECIPES.get(name, {}), **data} if isinstance(data, dict) else data

    def learning_rate(self, step: int, plan: Plan) -> float:
        """The rate of a 0-based step: a classifier's cosine, else the task's own course."""
        if isinstance(self.task, ClassificationConfig):
            return super().learning_rate(step, plan)
        return self.task.learning_rate(step, plan, peak=self.peak_lr, final=self.min_lr)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune for a task; writes a run folder and returns what stands in its run.json under 'results'.

    Raises:
        UserError: bad configuration, data or initial weights.
        SavedOnSignal, Interrupted: after a save on SIGTERM, SIGUSR1 or Ctrl-C.
    """
    match config.task:
        case SegmentationConfig() as task_config:
            return finetune_segmentation(config, task_config)
        case ClassificationConfig():
            return finetune_classifier(config)


def finetune_classifier(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune a classifier of images, as `finetune` says."""
    if config.data is None:
        raise UserError("give --data DIR, a folder with one sub-folder a class")
    # Written down in full: later verbs find the images from wherever they are called.
    root, val = config.data.absolute(), config.val.absolute() if config.val else None
    config = config.model_copy(update={"data": root, "val": val})
    start = find_start(config)  # what cannot be built is refused before images are looked for
    with open_world(config.device) as world:
        data = LabelledData.open(root, val, val_share=config.val_share, seed=config.seed)
        plan = Plan.of(config, steps_per_epoch(len(data.train), config.batch_size))
        torch.manual_seed(config.seed)
        task, note = build(config, data, start)
        with open_run("finetune", config, world) as record:
            record.results["init"] = note
            if world.is_main:
                print(note)
            _train(config, task, plan, world, record)
    if world.is_main:
        print(f"top-1 {record.results['top1']:.2f} % on {record.results['evaluated_images']} held-out images")
        print(f"classifier in {record.folder}/model; next: edgemim export {record.folder} --onnx --int8")
    return record.results


def build(config: FinetuneConfig, data: LabelledData, start: Start) -> tuple[ClassificationTask, str]:
    """The task with its initial weights, and a sentence on where they came from. Raises UserError."""
    built = build_start(config, start, len(data.train.classes))
    preprocessing = Preprocessing(image_size=built.input_size, crop_pct=config.crop_pct, **built.statistics)
    task = ClassificationTask(
        built.model, data.train.classes, preprocessing, data, architecture=built.architecture, mixing=config.mixing
    )
    return task, built.note


def _train(config: FinetuneConfig, task: ClassificationTask, plan: Plan, world: World, record: RunRecord) -> None:
    task.to(world.device)
    assert task.data is not None
    data = task.data
    transform = config.transform.build(task.preprocessing.image_size)
    arguments = loader_arguments(config, plan, world)

    def batches(start: int) -> BatchStream:
        return build_loader(data.train, transform, start_step=start, **arguments)

    def measure() -> AccuracyReport:
        loader = eval_loader(data.val, task.preprocessing, batch_size=64, workers=arguments["workers"])
        return evaluate_classifier(task, loader, world.device)

    fit(
        config,
        task,
        plan,
        world,
        record,
        batches=batches,
        data_fingerprint=data.train.fingerprint,
        evaluate=lambda: measure().tops,
    )
    if world.is_main:
        write_accuracy(record, measure(), task.labels)
        record.results["held_out"] = data.held_out
        save_model(record.folder / "model", task.model.state_dict(), task.facts())


def write_accuracy(record: RunRecord, report: AccuracyReport, labels: tuple[str, ...]) -> None:
    """Put a report's figures into the record and its confusion matrix into a picture."""
    figures = report.as_dict()
    record.results["evaluated_images"] = figures.pop("images")
    record.results.update(figures)
    record.results["confusion"] = report.confusion.tolist()
    save_figure(plot_confusion(report.confusion, labels), record.folder / "pictures" / "confusion.png")
