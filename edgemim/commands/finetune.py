"""`edgemim finetune`: a pre-trained encoder becomes a classifier, or by `segmentation.train` names pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pydantic
import timm
import torch
from torch import nn

from edgemim.analysis.accuracy import AccuracyReport, evaluate_classifier
from edgemim.commands.segmentation.train import finetune_segmentation
from edgemim.data.loader import build_loader, eval_loader, steps_per_epoch
from edgemim.data.transforms import FinetuneTransform
from edgemim.edge.images import Preprocessing
from edgemim.edge.report import plot_confusion, save_figure
from edgemim.errors import UserError
from edgemim.models.build import parse_encoder
from edgemim.models.relative import from_plain
from edgemim.models.sizes import EncoderConfig, EncoderSize, RelativePositionsConfig, RelativeVitConfig, VitConfig
from edgemim.models.weights import MODEL_FILE, encoder_of, load_weights, read_facts, read_tensors, save_model
from edgemim.run import RunRecord, find_run
from edgemim.tasks import TaskConfig
from edgemim.tasks.classification import ClassificationConfig, ClassificationTask, MixingConfig, build_model
from edgemim.tasks.segmentation import SEGMENTATION_RECIPE, SegmentationConfig
from edgemim.tasks.task import LabelledData
from edgemim.training.distributed import World, open_world
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, TrainingConfig
from edgemim.training.session import open_record, open_run_folder, run_training


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
        """What is not said is the task's own recipe: segmentation is trained longer, in smaller batches."""
        named = data.get("task") if isinstance(data, dict) else None
        name = named.get("name") if isinstance(named, dict) else getattr(named, "name", named)
        return {**SEGMENTATION_RECIPE, **data} if name == "segmentation" else data

    def learning_rate(self, step: int, plan: Plan) -> float:
        """The rate of a 0-based step: a cosine, for segmentation a falling power."""
        if isinstance(self.task, SegmentationConfig):
            return self.task.learning_rate(step, plan, peak=self.peak_lr, final=self.min_lr)
        return super().learning_rate(step, plan)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune for a task; writes a run folder and returns what stands in its run.json under 'results'.

    Raises:
        UserError: bad configuration, data or initial weights.
        SavedOnSignal, Interrupted: after a save on SIGTERM, SIGUSR1 or Ctrl-C.
    """
    if isinstance(config.task, SegmentationConfig):
        return finetune_segmentation(config, config.task)
    if config.data is None:
        raise UserError("give --data DIR, a folder with one sub-folder a class")
    # Written down in full: later verbs find the images from wherever they are called.
    root, val = config.data.absolute(), config.val.absolute() if config.val else None
    config = config.model_copy(update={"data": root, "val": val})
    _initial(config)  # what cannot be built is refused before images are looked for
    with open_world(config.device) as world:
        data = LabelledData.open(root, val, val_share=config.val_share, seed=config.seed)
        plan = Plan.of(config, steps_per_epoch(len(data.train), config.batch_size))
        torch.manual_seed(config.seed)
        task, note = build(config, data)
        out, lock = open_run_folder("finetune", config, world)
        try:
            with open_record("finetune", out, config, world) as record:
                record.results["init"] = note
                if world.is_main:
                    print(note)
                _train(config, task, plan, world, record)
        finally:
            if lock is not None:
                lock.release()
    if world.is_main:
        print(f"top-1 {record.results['top1']:.2f} % on {record.results['evaluated_images']} held-out images")
        print(f"classifier in {out}/model; next: edgemim export {out} --onnx --int8")
    return record.results


def build(config: FinetuneConfig, data: LabelledData) -> tuple[ClassificationTask, str]:
    """The task with its initial weights, and a sentence on where they came from. Raises UserError."""
    run, encoder = _initial(config)
    if encoder is None:
        model, architecture, statistics, note = _from_timm(config, len(data.train.classes))
    elif run is None:
        architecture = {"vit": encoder.model_dump(mode="json")}
        model = build_model(architecture, len(data.train.classes), drop_path=config.drop_path)
        statistics, note = {}, "weights: from scratch"
    else:
        model, architecture, statistics, note = _from_run(config, run, encoder, len(data.train.classes))
    size = _input_size(model, architecture)
    preprocessing = Preprocessing(image_size=size, crop_pct=config.crop_pct, **statistics)
    task = ClassificationTask(
        model, data.train.classes, preprocessing, data, architecture=architecture, mixing=config.mixing
    )
    return task, note


Built = tuple[nn.Module, dict[str, Any], dict[str, Any], str]
"""Model, architecture record, input statistics, a sentence on the weights."""


def _initial(config: FinetuneConfig) -> tuple[Path | None, EncoderSize | None]:
    """The run that weights come from, and the encoder that is fine-tuned; neither, for a timm model.

    Raises:
        UserError: if there is no such run, or the network cannot have the relative positions that are asked for.
    """
    added = config.relative_positions
    if config.init.startswith("timm:"):
        if added is not None:
            raise UserError(f"{config.init} has timm's own positions; leave --relative-positions out")
        return None, None
    run, encoder = None, config.encoder
    if config.init != "scratch":
        run = find_run(None if config.init == "newest" else Path(config.init), "pretrain")
        encoder = encoder_of(run)
    if added is None:
        return run, encoder.as_classifier()
    if type(encoder) is not VitConfig:
        raise UserError(
            f"--relative-positions are added to a plain vision transformer, not to a {encoder.name}"
            f"{f' as {run} holds' if run else ''}; leave them out"
        )
    return run, added.added_to(encoder)


def _from_run(config: FinetuneConfig, run: Path, encoder: EncoderSize, classes: int) -> Built:
    facts = read_facts(run)
    architecture = {"vit": encoder.model_dump(mode="json")}
    model = build_model(architecture, classes, drop_path=config.drop_path)
    # As in MAE: the pre-training norm is left behind, pooled features get a new one.
    weights, may_drop, may_miss = read_tensors(run / "model" / MODEL_FILE), ("norm.",), ("fc_norm.", "head.")
    if config.relative_positions is not None and isinstance(encoder, RelativeVitConfig):
        weights = from_plain(weights, encoder)
        may_drop += tuple(key for key in weights if key.endswith(".k_bias"))
        may_drop += () if encoder.absolute_positions else ("pos_embed",)
        may_miss += tuple(key for key in model.state_dict() if key.endswith(".relative_position_bias_table"))
    report = load_weights(model, weights, may_drop=may_drop, may_miss=may_miss)
    statistics = {key: facts["preprocessing"][key] for key in ("mean", "std")}
    return model, architecture, statistics, f"weights: {run} ({report})"


def _from_timm(config: FinetuneConfig, classes: int) -> Built:
    name = config.init.removeprefix("timm:")
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        hint = f"; close: {', '.join(close)}" if close else ""
        raise UserError(f"timm knows no model '{name}'{hint}")
    try:
        options = {"num_classes": classes, "drop_path_rate": config.drop_path or None}
        model = timm.create_model(name, pretrained=config.weights is None, **options)
    except Exception as error:  # a hub's many ways to fail, all with one remedy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot get the weights of {name} ({reason}); give --weights FILE") from error
    note = f"weights: timm {name}, downloaded by timm"
    if config.weights is not None:
        head = tuple(f"{key}." for key in _names(_timm_facts(model).get("classifier")))
        report = load_weights(model, read_tensors(config.weights), may_drop=head, may_miss=head)
        note = f"weights: {config.weights} ({report})"
    statistics = {key: _timm_facts(model)[key] for key in ("mean", "std")}
    return model, {"timm": name}, statistics, note


def _timm_facts(model: nn.Module) -> dict[str, Any]:
    """What timm knows of a model's input and head."""
    return cast(dict[str, Any], model.default_cfg)


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _input_size(model: nn.Module, architecture: dict[str, Any]) -> int:
    if "vit" in architecture:
        return parse_encoder(architecture["vit"]).image_size
    return _timm_facts(model)["input_size"][-1]


def _train(config: FinetuneConfig, task: ClassificationTask, plan: Plan, world: World, record: RunRecord) -> None:
    task.to(world.device)
    assert task.data is not None
    data = task.data
    transform = config.transform.build(task.preprocessing.image_size)
    no_decay = getattr(task.model, "no_weight_decay", set)()
    optimizer = build_adamw(
        task.model,
        weight_decay=config.weight_decay,
        betas=config.betas,
        layer_decay=config.layer_decay,
        no_decay=tuple(no_decay),
    )
    workers = config.reader_processes(world.size)

    def batches(start: int) -> Any:
        return build_loader(
            data.train,
            transform,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start,
            total_steps=plan.total_steps,
            rank=world.rank,
            world=world.size,
            accumulate=config.accumulate,
            workers=workers,
            pin_memory=world.device.type == "cuda",
        )

    def evaluate() -> AccuracyReport:
        loader = eval_loader(data.val, task.preprocessing, batch_size=64, workers=workers)
        return evaluate_classifier(task, loader, world.device)

    def after_epoch(epoch: int, step: int) -> dict[str, float]:
        every = max(1, round(config.evaluate_every))
        if config.evaluate_every <= 0 or epoch % every or step == plan.total_steps:
            return {}
        report = evaluate()
        return {f"val_{name}": value for name, value in report.tops.items()}

    trainer, _ = run_training(
        task,
        optimizer,
        config,
        plan,
        world,
        record,
        batches=batches,
        data_fingerprint=data.train.fingerprint,
        evaluations=[after_epoch],
    )
    if world.is_main:
        task.model.load_state_dict(trainer.exported_state())
        report = evaluate()
        write_accuracy(record, report, task.labels)
        record.results["held_out"] = data.held_out
        save_model(record.folder / "model", task.model.state_dict(), task.facts())


def write_accuracy(record: RunRecord, report: AccuracyReport, labels: tuple[str, ...]) -> None:
    """Put a report's figures into the record and its confusion matrix into a picture."""
    figures = report.as_dict()
    record.results["evaluated_images"] = figures.pop("images")
    record.results.update(figures)
    record.results["confusion"] = report.confusion.tolist()
    save_figure(plot_confusion(report.confusion, labels), record.folder / "pictures" / "confusion.png")
