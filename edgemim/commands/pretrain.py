"""`edgemim pretrain`: an encoder from unlabelled images, by masked image modeling and distillation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import nn

from edgemim.commands.pretrain_watch import EncoderWatch
from edgemim.data.image_set import ImageSet
from edgemim.data.loader import Batch, build_loader, steps_per_epoch
from edgemim.data.sources import Source, find_sources
from edgemim.data.transforms import PretrainTransform
from edgemim.edge.images import IMAGENET_MEAN, IMAGENET_STD
from edgemim.errors import UserError
from edgemim.methods import MaeConfig, MethodConfig
from edgemim.methods.pretraining import PretrainObjective
from edgemim.models.build import build_encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderConfig, VitConfig
from edgemim.models.weights import save_model
from edgemim.run import RunRecord
from edgemim.teachers import Teacher, TeacherConfig
from edgemim.teachers.cache_plan import check_cacheable
from edgemim.teachers.cached import CachedTeacher, open_cached
from edgemim.training.distributed import World, open_world
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, TrainingConfig
from edgemim.training.session import loader_arguments, open_run, run_training


class PretrainConfig(TrainingConfig):
    """Pre-train an encoder on a folder of images; labels are not needed.

    Example: edgemim pretrain --data photos/ --encoder vit_tiny --teacher efficientnet_lite0 --method feature_distill
    """

    data: Path | None = None
    """Folder of images, nested or flat; CSV file, tar shards or Hugging Face dataset on disk. Of a set with splits only
    the training part is trained on."""
    method: MethodConfig = MaeConfig()
    """What is optimised."""
    encoder: EncoderConfig = VitConfig()
    """The network that is trained."""
    teacher: TeacherConfig | None = None
    """The frozen model that features are distilled from, for methods that have one."""
    teacher_cache: Path | None = None
    """Folder in which the teacher's features are kept, a row an image, over epochs and runs; for methods that read
    features of the whole image, with --transform.crop none --transform.no-flip."""
    teacher_cache_limit_gib: float = pydantic.Field(default=20.0, gt=0)
    """Largest size of such a cache."""
    teacher_cache_upfront: bool = False
    """Compute all features before the first step; else each when it is first needed."""
    transform: PretrainTransform = PretrainTransform()
    """Augmentation."""
    epochs: float = pydantic.Field(default=400.0, gt=0)
    """Passes over the images (the lightweight study pre-trains for 400)."""
    warmup_epochs: float = pydantic.Field(default=40.0, ge=0)
    """Epochs of linear warm-up from 0."""
    decay_vectors: bool = False
    """Decay vectors and biases as matrices, as MoCo-v3's published code does."""
    picture_every: float = pydantic.Field(default=10.0, ge=0)
    """Epochs between two reconstruction pictures; 0 makes none."""
    knn_every: float = pydantic.Field(default=10.0, ge=0)
    """Epochs between two k-NN figures where the folder has classes; 0 makes none."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the channels that the input is normalised with, on the scale of [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Deviation of the channels that the input is normalised with."""


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Pre-train an encoder; writes a run folder and returns what stands in its run.json under 'results'.

    Raises:
        UserError: bad configuration or data.
        SavedOnSignal, Interrupted: after a save on SIGTERM, SIGUSR1 or Ctrl-C.
    """
    if config.data is None:
        raise UserError("give --data DIR, a folder of images")
    # Written down in full: later verbs find the images from wherever they are called.
    data = config.data.absolute()
    cache = None if config.teacher_cache is None else config.teacher_cache.absolute()
    config = config.model_copy(update={"data": data, "teacher_cache": cache})
    config.method.check(config.encoder)
    _check_composition(config)
    _check_cache(config)
    with open_world(config.device) as world:
        sources = find_sources(data)
        folder = sources.train.open(progress=world.is_main)
        torch.manual_seed(config.seed)
        teacher = build_teacher(config, world.device)
        if config.teacher_cache is not None:
            teacher = cache_teacher(config, config.teacher_cache, teacher, folder, world)
        model = build(config, world.device, teacher)
        plan = Plan.of(config, steps_per_epoch(len(folder), config.batch_size))
        with open_run("pretrain", config, world) as record:
            if teacher is not None and world.is_main:
                record.results["teacher"] = teacher.summary
                print(f"teacher: {teacher.summary}")
            cached = teacher if isinstance(teacher, CachedTeacher) else None
            if cached is not None and config.teacher_cache_upfront:
                share, workers = (world.rank, world.size), config.reader_processes(world.size)
                cached.fill(folder, config.transform, config.encoder.image_size, share, workers)
            try:
                _train(config, model, folder, sources.splits.get("val"), plan, world, record, cached)
            finally:
                if cached is not None:
                    record.results["teacher_cache"] = cached.facts()
    if world.is_main:
        print(f"pre-trained encoder in {record.folder}/model; next: edgemim finetune --init {record.folder} --data DIR")
    return record.results


def build(config: PretrainConfig, device: torch.device, teacher: nn.Module | None = None) -> PretrainObjective:
    """The model that a configuration describes, freshly initialised from torch's generator."""
    encoder = build_encoder(config.encoder)
    return config.method.build(encoder, Normalization(config.mean, config.std), teacher).to(device)


def build_teacher(config: PretrainConfig, device: torch.device) -> nn.Module | None:
    """The frozen teacher, if the method has one. It is no part of the model's module tree: no checkpoint holds it.

    Raises:
        UserError: if a teacher is given to a method without one, or its grid cannot meet the student's.
    """
    if config.teacher is None:
        return None
    return config.method.build_teacher(config.teacher, config.encoder).to(device)


def _check_composition(config: PretrainConfig) -> None:
    """Refuse what cannot be composed before any image is looked for. Raises UserError.

    A given teacher is only loaded later, by `build_teacher`, and only then meets its student.
    """
    if config.teacher is None:
        with torch.device("meta"):
            config.method.build(build_encoder(config.encoder), Normalization(config.mean, config.std), None)
    elif config.method.teacher_kind == "none":
        config.method.build_teacher(config.teacher, config.encoder)


def _check_cache(config: PretrainConfig) -> None:
    """Refuse a cache that would be wrong before anything is loaded. Raises UserError."""
    if config.teacher_cache is None:
        return
    if config.teacher is None or config.method.teacher_kind != "features":
        reason = "it has no teacher" if config.teacher is None else "its target depends on the mask"
        raise UserError(
            f"--teacher-cache keeps features of whole images, which method {config.method.name} does not read here: "
            f"{reason}; leave it out, or give --method feature_distill --teacher NAME"
        )
    check_cacheable(config.transform)


def cache_teacher(
    config: PretrainConfig, root: Path, teacher: nn.Module | None, folder: ImageSet, world: World
) -> CachedTeacher:
    """The teacher with its features kept below `root`; says first how large they are. Raises UserError if too large."""
    assert isinstance(teacher, Teacher)
    size, limit = config.encoder.image_size, config.teacher_cache_limit_gib
    opened: list[CachedTeacher] = []

    def open_first() -> None:
        opened.append(open_cached(teacher, root, folder, config.transform, size, limit_gib=limit, announce=True))

    world.on_main(open_first)
    return opened[0] if opened else open_cached(teacher, root, folder, config.transform, size, limit_gib=limit)


def _train(
    config: PretrainConfig,
    model: PretrainObjective,
    folder: ImageSet,
    val: Source | None,
    plan: Plan,
    world: World,
    record: RunRecord,
    cached: CachedTeacher | None = None,
) -> None:
    transform = config.method.build_transform(config.transform, config.encoder.image_size)
    optimizer = build_adamw(
        model, weight_decay=config.weight_decay, betas=config.betas, decay_vectors=config.decay_vectors
    )
    arguments = loader_arguments(config, plan, world)

    def batches(start: int) -> Iterable[Batch]:
        stream = build_loader(folder, transform, start_step=start, **arguments)
        return stream if cached is None else cached.follow(stream)

    watch = EncoderWatch(config, model, folder, val, plan, world, record)
    trainer, _ = run_training(
        model,
        optimizer,
        config,
        plan,
        world,
        record,
        batches=batches,
        data_fingerprint=folder.fingerprint,
        hooks=[watch.picture],
        evaluations=[watch.knn],
    )
    if world.is_main:
        facts = {
            "kind": "encoder",
            "encoder": config.encoder.model_dump(mode="json"),
            "method": config.method.model_dump(mode="json"),
            "preprocessing": watch.preprocessing.model_dump(mode="json"),
        }
        save_model(record.folder / "model", trainer.exported_state(), facts)
