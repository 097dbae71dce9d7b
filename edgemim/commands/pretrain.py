"""`edgemim pretrain`: an encoder from unlabelled images, by masked image modeling and distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from PIL import Image
from torch import nn

from edgemim.analysis.knn import extract_features, knn_accuracy
from edgemim.data.folders import ImageFolder, find_splits, scan_folder
from edgemim.data.loader import build_loader, eval_loader, steps_per_epoch
from edgemim.data.transforms import PretrainTransform
from edgemim.edge.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from edgemim.errors import UserError
from edgemim.methods import MaeConfig, MethodConfig
from edgemim.methods.pretraining import PretrainObjective
from edgemim.models.build import build_encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderConfig, VitConfig
from edgemim.models.weights import save_model
from edgemim.run import RunRecord
from edgemim.tasks.task import spread_over_classes, stratified_split
from edgemim.teachers import Teacher, TeacherConfig
from edgemim.teachers.cache_plan import check_cacheable
from edgemim.teachers.cached import CachedTeacher, open_cached
from edgemim.training.distributed import World, open_world
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, TrainingConfig
from edgemim.training.session import open_record, open_run_folder, run_training

_KNN_BANK, _KNN_QUERIES = 4000, 1000
_PICTURES = 8


class PretrainConfig(TrainingConfig):
    """Pre-train an encoder on a folder of images; labels are not needed.

    Example: edgemim pretrain --data photos/ --encoder vit_tiny --teacher efficientnet_lite0 --method feature_distill
    """

    data: Path | None = None
    """Folder of images, nested or flat. If it holds train/ and val/, only train/ is trained on."""
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
        splits = find_splits(data)
        folder = scan_folder(splits.get("train", data), progress=world.is_main)
        torch.manual_seed(config.seed)
        teacher = build_teacher(config, world.device)
        if config.teacher_cache is not None:
            teacher = cache_teacher(config, config.teacher_cache, teacher, folder, world)
        model = build(config, world.device, teacher)
        plan = Plan.of(config, steps_per_epoch(len(folder), config.batch_size))
        out, lock = open_run_folder("pretrain", config, world)
        try:
            with open_record("pretrain", out, config, world) as record:
                if teacher is not None and world.is_main:
                    record.results["teacher"] = teacher.summary
                    print(f"teacher: {teacher.summary}")
                cached = teacher if isinstance(teacher, CachedTeacher) else None
                if cached is not None and config.teacher_cache_upfront:
                    share, workers = (world.rank, world.size), config.reader_processes(world.size)
                    cached.fill(folder, config.transform, config.encoder.image_size, share, workers)
                try:
                    _train(config, model, folder, splits.get("val"), plan, world, record, cached)
                finally:
                    if cached is not None:
                        record.results["teacher_cache"] = cached.facts()
        finally:
            if lock is not None:
                lock.release()
    if world.is_main:
        print(f"pre-trained encoder in {out}/model; next: edgemim finetune --init {out} --data DIR")
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
    config: PretrainConfig, root: Path, teacher: nn.Module | None, folder: ImageFolder, world: World
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
    folder: ImageFolder,
    val: Path | None,
    plan: Plan,
    world: World,
    record: RunRecord,
    cached: CachedTeacher | None = None,
) -> None:
    transform = config.method.build_transform(config.transform, config.encoder.image_size)
    optimizer = build_adamw(
        model, weight_decay=config.weight_decay, betas=config.betas, decay_vectors=config.decay_vectors
    )
    workers = config.reader_processes(world.size)

    def batches(start: int) -> Any:
        stream = build_loader(
            folder,
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
        return stream if cached is None else cached.follow(stream)

    watch = _Watch(config, model, folder, val, plan, world, record)
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


class _Watch:
    """Looks at the model between epochs: reconstructions of fixed images, and k-NN where there are labels."""

    def __init__(
        self,
        config: PretrainConfig,
        model: PretrainObjective,
        folder: ImageFolder,
        val: Path | None,
        plan: Plan,
        world: World,
        record: RunRecord,
    ) -> None:
        self.config, self.model, self.plan, self.world, self.record = config, model, plan, world, record
        self.preprocessing = Preprocessing(
            image_size=config.encoder.image_size, crop_pct=1.0, mean=config.mean, std=config.std
        )
        self._folder = folder
        self._bank, self._queries = _knn_parts(folder, val, config.seed) if world.is_main else (None, None)

    def picture(self, epoch: int, step: int) -> dict[str, float]:
        """Hook of the loop: a picture if it is due after this epoch, and always after the last."""
        if _due(epoch, self.config.picture_every, step == self.plan.total_steps):
            self._paint(step)
        return {}

    def knn(self, epoch: int, step: int) -> dict[str, float]:
        """Evaluation of the loop: the k-NN figure, likewise."""
        if self._bank is None or not _due(epoch, self.config.knn_every, step == self.plan.total_steps):
            return {}
        self.record.results["knn_top1"] = accuracy = self._knn()
        return {"knn_top1": accuracy}

    def _paint(self, step: int) -> None:
        chosen = np.linspace(0, len(self._folder) - 1, min(_PICTURES, len(self._folder))).astype(int)
        loader = eval_loader(self._folder, self.preprocessing, batch_size=_PICTURES, indices=np.unique(chosen))
        batch = next(iter(loader)).to(self.world.device)
        painted = self.model.reconstruct(batch.images, batch.keys)
        if painted is None:
            return
        rows = [image.cpu() for image in (*painted, batch.images.float() / 255)]
        path = self.record.folder / "pictures" / f"reconstruction-{step:09d}.png"
        path.parent.mkdir(exist_ok=True)
        _save_grid(rows, path)

    def _knn(self) -> float:
        assert self._bank is not None
        assert self._queries is not None

        def encode(images: torch.Tensor) -> torch.Tensor:
            return self.model.pool(self.model.encoder(self.model.normalization.apply(images)))

        found = [
            extract_features(encode, eval_loader(part, self.preprocessing, batch_size=64), self.world.device)
            for part in (self._bank, self._queries)
        ]
        return knn_accuracy(*found[0], *found[1])


def _due(epoch: int, every: float, last: bool) -> bool:
    return every > 0 and (last or epoch % max(1, round(every)) == 0)


def _knn_parts(folder: ImageFolder, val: Path | None, seed: int) -> tuple[ImageFolder | None, ImageFolder | None]:
    """A labelled bank and labelled queries: the val folder's where there is one, else a tenth of the images."""
    if not folder.classes:
        return None, None
    if val is not None:
        bank, queries = folder, scan_folder(val).with_classes(folder.classes)
    else:
        kept, held = stratified_split(folder.labels, 0.1, seed)
        bank, queries = folder.select(kept), folder.select(held)
    if not len(queries):
        return None, None
    return (
        bank.select(spread_over_classes(bank.labels, _KNN_BANK)),
        queries.select(spread_over_classes(queries.labels, _KNN_QUERIES)),
    )


def _save_grid(rows: list[torch.Tensor], path: Path) -> None:
    """Rows of images in [0, 1], each [b, 3, h, w], as one PNG with two pixels between; small images are enlarged."""
    scale = max(1, 128 // rows[0].shape[-1])
    lines = []
    for images in rows:
        big = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        padded = torch.nn.functional.pad(big, (1, 1, 1, 1), value=1.0)
        lines.append(torch.cat(list(padded), dim=2))
    picture = (torch.cat(lines, dim=1).permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(picture.numpy()).save(path)
