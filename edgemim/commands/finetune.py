"""`edgemim finetune`: a pre-trained encoder becomes a classifier, or by `segmentation.train` names pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
import torch

from edgemim.analysis.accuracy import AccuracyReport, evaluate_classifier
from edgemim.commands.fit import fit
from edgemim.commands.initial import Start, build_start, find_start
from edgemim.commands.segmentation.train import finetune_segmentation
from edgemim.commands.tracking.train import TRACKING_RECIPE, finetune_tracking
from edgemim.data.labelled import LabelledData
from edgemim.data.loader import BatchStream, build_loader, eval_loader, steps_per_epoch
from edgemim.data.transforms import FinetuneTransform
from edgemim.edge.images import Preprocessing
from edgemim.edge.report import plot_confusion, save_figure
from edgemim.errors import UserError
from edgemim.models.sizes import EncoderConfig, RelativePositionsConfig, VitConfig
from edgemim.models.weights import save_model
from edgemim.run import RunRecord
from edgemim.tasks import TaskConfig
from edgemim.tasks.class_teacher import open_class_teacher, top1_on
from edgemim.tasks.classification import ClassificationConfig, ClassificationTask, MixingConfig
from edgemim.tasks.distillation import Distillation, DistillationConfig
from edgemim.tasks.segmentation import SEGMENTATION_RECIPE, SegmentationConfig
from edgemim.tasks.tracking import TrackingConfig
from edgemim.training.distributed import World, open_world
from edgemim.training.recipe import Plan, TrainingConfig
from edgemim.training.session import loader_arguments, open_run

_RECIPES: dict[object, dict[str, Any]] = {"segmentation": SEGMENTATION_RECIPE, "tracking": TRACKING_RECIPE}
"""Defaults of a task's own."""
_SGD: dict[str, Any] = {"base_lr": 0.015, "weight_decay": 0.0, "clip_grad": 1.0}
"""Defaults of SGD's own: the study's transfer recipe, 0.03 for a batch of 512."""


class FinetuneConfig(TrainingConfig):
    """Fine-tune on labelled images, with the improved lightweight recipe (arXiv 2205.14443 and its published code).

    Example: edgemim finetune --task classification --init runs/pretrain-... --data photos/ --epochs 100
    """

    task: TaskConfig = ClassificationConfig()
    """What is learnt: classification, or segmentation with defaults of its own."""
    data: Path | None = None
    """Folder with one sub-folder a class, or with train/ and val/ (or test/) of such; CSV file of path,label; tar shards;
    Hugging Face dataset on disk; of a segmentation set, its root."""
    val: Path | None = None
    """Held-out images, laid out alike; else the set's own split, else a share of the data."""
    val_share: float = pydantic.Field(default=0.1, gt=0, lt=1)
    """Share (of each class) that is held out where there is no split."""
    classes: Path | None = None
    """Classification: file of class names, one a line, that fixes which classes there are and their order."""
    class_balanced: bool = False
    """Classification: show every class as often as every other, images of small ones repeatedly."""
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
    pool: Literal["mean", "cls"] = "mean"
    """What is classified: the mean of the patch tokens, or the class token, which MoCo-v3 trains."""
    distillation: DistillationConfig = DistillationConfig()
    """What is learnt from another classifier; nothing by default."""
    crop_pct: float = pydantic.Field(default=0.875, gt=0, le=1)
    """Part of the short side that the evaluation crop keeps."""
    layer_decay: float = pydantic.Field(default=0.85, gt=0, le=1)
    """A layer's learning rate over that of the layer above it (0.85 for MAE, 0.75 for MoCo-v3)."""
    drop_path: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Largest rate of stochastic depth."""
    evaluate_every: float = pydantic.Field(default=10.0, ge=0)
    """Epochs between two evaluations; 0 evaluates at the end alone."""
    keep_best: bool = False
    """Hand on the weights of the best evaluation (by top-1, mIoU), not the last ones. The held-out images choose then, and
    their figure is that of a chosen model: measure on others."""
    patience: int | None = pydantic.Field(default=None, ge=1)
    """Evaluations without a gain after which the run ends, and hands on the best weights; by default it never does."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov's momentum and the study's settings for small sets: rate 0.015 for a batch of 256, no
    decay, gradients up to norm 1."""
    epochs: float = pydantic.Field(default=300.0, gt=0)
    """Passes over the images."""
    warmup_epochs: float = pydantic.Field(default=5.0, ge=0)
    """Epochs of linear warm-up from 0."""
    base_lr: float = pydantic.Field(default=1e-3, gt=0)
    """Peak learning rate for a batch of 256; scaled linearly with the batch size."""
    min_lr: float = pydantic.Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's momenta; SGD has the first."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, data: Any) -> Any:
        """What is not said is the recipe of the task and of the optimizer."""
        if not isinstance(data, dict):
            return data
        named = data.get("task")
        name = named.get("name") if isinstance(named, dict) else getattr(named, "name", named)
        return {**_RECIPES.get(name, {}), **(_SGD if data.get("optimizer") == "sgd" else {}), **data}

    @pydantic.model_validator(mode="after")
    def _check_evaluations(self) -> FinetuneConfig:
        if self.evaluate_every == 0 and (self.keep_best or self.patience is not None):
            name = "keep_best" if self.patience is None else "patience"
            raise ValueError(
                f"'{name}' chooses among evaluations, and evaluate_every 0 has but one; give --evaluate-every 1"
            )
        return self

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
    if not isinstance(config.task, ClassificationConfig) and (config.classes is not None or config.class_balanced):
        wrong = "--classes" if config.classes is not None else "--class-balanced"
        raise UserError(f"{wrong} is for --task classification; leave it out (a segmentation set has --task.classes)")
    match config.task:
        case SegmentationConfig() as task_config:
            return finetune_segmentation(config, task_config)
        case TrackingConfig() as task_config:
            return finetune_tracking(config, task_config)
        case ClassificationConfig():
            return finetune_classifier(config)


def finetune_classifier(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune a classifier of images, as `finetune` says."""
    if config.data is None:
        raise UserError("give --data DIR, a folder with one sub-folder a class")
    # Written down in full: later verbs find the images from wherever they are called.
    root, val = config.data.absolute(), config.val.absolute() if config.val else None
    names = config.classes.absolute() if config.classes else None
    config = config.model_copy(update={"data": root, "val": val, "classes": names})
    start = find_start(config)  # what cannot be built is refused before images are looked for
    with open_world(config.device) as world:
        data = LabelledData.open(root, val, val_share=config.val_share, seed=config.seed, classes=names)
        plan = Plan.of(config, steps_per_epoch(len(data.train), config.batch_size))
        distillation = open_distillation(config, data.train.classes, world)
        torch.manual_seed(config.seed)
        task, note = build(config, data, start, distillation)
        with open_run("finetune", config, world) as record:
            record.results["init"] = note
            if world.is_main:
                print(note)
            if distillation is not None:
                record.results["teacher"] = meet_teacher(distillation, task, world)
            _train(config, task, plan, world, record)
    if world.is_main:
        print(f"top-1 {record.results['top1']:.2f} % on {record.results['evaluated_images']} held-out images")
        print(f"classifier in {record.folder}/model; next: edgemim export {record.folder} --onnx --int8")
    return record.results


def open_distillation(config: FinetuneConfig, labels: tuple[str, ...], world: World) -> Distillation | None:
    """The teacher, on its device, and how it is listened to; None without one. Raises UserError."""
    if config.distillation.teacher is None:
        return None
    return Distillation(config.distillation, open_class_teacher(config.distillation, labels).to(world.device))


def meet_teacher(distillation: Distillation, task: ClassificationTask, world: World) -> dict[str, Any]:
    """What the teacher is and how much it knows of some held-out images, said and for the record."""
    teacher = distillation.teacher
    facts: dict[str, Any] = {"summary": teacher.summary}
    if world.is_main:
        assert task.data is not None
        facts["top1"], facts["images"] = top1_on(teacher, task.data.val, task.preprocessing, world.device)
        print(f"teacher: {teacher.summary}; top-1 {facts['top1']:.2f} % on {facts['images']} held-out images")
    return facts


def build(
    config: FinetuneConfig, data: LabelledData, start: Start, distillation: Distillation | None = None
) -> tuple[ClassificationTask, str]:
    """The task with its initial weights, and a sentence on where they came from. Raises UserError."""
    built = build_start(config, start, len(data.train.classes))
    preprocessing = Preprocessing(image_size=built.input_size, crop_pct=config.crop_pct, **built.statistics)
    task = ClassificationTask(
        built.model,
        data.train.classes,
        preprocessing,
        data,
        architecture=built.architecture,
        mixing=config.mixing,
        distillation=distillation,
    )
    return task, built.note


def _train(config: FinetuneConfig, task: ClassificationTask, plan: Plan, world: World, record: RunRecord) -> None:
    task.to(world.device)
    assert task.data is not None
    data = task.data
    transform = config.transform.build(task.preprocessing.image_size)
    arguments = loader_arguments(config, plan, world)

    def batches(start: int) -> BatchStream:
        balanced = config.class_balanced
        return build_loader(data.train, transform, start_step=start, class_balanced=balanced, **arguments)

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
