"""What fine-tuning optimises and export asks for: one interface over all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.data.folders import ImageFolder, find_splits, scan_folder
from edgemim.data.loader import eval_loader
from edgemim.edge.images import Preprocessing
from edgemim.edge.runtime import Session
from edgemim.errors import UserError
from edgemim.models.normalization import Normalization
from edgemim.tasks.comparison import Comparison, Limits, RunModel
from edgemim.training.objective import Objective


@dataclass(frozen=True)
class LabelledData:
    """Training and held-out images with the same classes.

    Attributes:
        train: images that are trained on.
        val: images that are only measured on.
        held_out: how `val` came about, for the record.
    """

    train: ImageFolder
    val: ImageFolder
    held_out: str

    @staticmethod
    def open(data: Path, val: Path | None = None, *, val_share: float = 0.1, seed: int = 0) -> LabelledData:
        """Open DIR with train/ and val/ (or test/) inside, two folders, or one folder of which a share is held out.

        The held-out share is drawn class by class with the seed.

        Raises:
            UserError: without at least two classes, or if the classes of both parts differ.
        """
        splits = find_splits(data)
        train = scan_folder(splits.get("train", data))
        if len(train.classes) < 2:
            raise UserError(f"{train.root} has no classes; put the images into one folder a class, at least two")
        other = val or splits.get("val") or splits.get("test")
        if other is not None:
            held = scan_folder(other).with_classes(train.classes)
            return LabelledData(train, held, f"folder {other}")
        kept, held_indices = stratified_split(train.labels, val_share, seed)
        if not len(held_indices):
            raise UserError(f"{val_share:.0%} of {train.root} is no image; give --val DIR or a larger --val-share")
        return LabelledData(
            train.select(kept), train.select(held_indices), f"{val_share:.0%} of each class, seed {seed}"
        )


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out), sorted: of each class round(share * count) held out, at least one stays."""
    generator = np.random.default_rng([seed, 0x5EED])
    kept, held = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(round(share * len(members)), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


class Task(Objective):
    """A model for a purpose, with what export needs: names, example input, calibration and evaluation batches."""

    task_name: str
    input_name = "images"
    output_names: tuple[str, ...] = ("logits",)
    limits = Limits(max_drop=1.0)
    """What its INT8 form must keep to, unless the user says otherwise."""

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        preprocessing: Preprocessing,
        data: LabelledData | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.labels = labels
        self.preprocessing = preprocessing
        self.data = data
        self.normalization = Normalization(preprocessing.mean, preprocessing.std)

    @property
    def exported(self) -> nn.Module:
        """The model itself."""
        return self.model

    def facts(self) -> dict[str, Any]:
        """What `load_task` needs to build the task again, for model.json."""
        raise NotImplementedError

    def manifest_facts(self) -> dict[str, Any]:
        """Further fields of the artifact's manifest."""
        return {}

    def at_size(self, image_size: int) -> Task:
        """The same model for squares of another size, where the task has such. Raises UserError."""
        if image_size == self.preprocessing.image_size:
            return self
        raise UserError(
            f"a model for {self.task_name} is exported at the {self.preprocessing.image_size} pixels that it was trained at, "
            f"not at {image_size}; leave --image-size out"
        )

    def held_out(self, data: Path | None = None) -> ImageFolder:
        """The images to measure on: the run's own, or those of another folder (its val/ or test/ where it has one)."""
        if data is None:
            return self._opened().val
        splits = find_splits(data)
        return scan_folder(splits.get("val") or splits.get("test") or data).with_classes(self.labels)

    def export_module(self) -> nn.Module:
        """The model from normalised images to its outputs, in evaluation mode and float32."""
        return self.model.eval().float()

    def example_input(self, batch: int = 2) -> Float[Tensor, "b 3 s s"]:
        """Normalised input of the right shape."""
        size = self.preprocessing.image_size
        return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))

    def calibration_batches(self, count: int, batch_size: int = 16, seed: int = 0) -> Iterator[np.ndarray]:
        """Normalised float32 [b, 3, s, s] arrays of `count` training images (all, if fewer), drawn with the seed."""
        train = self._opened().train
        chosen = np.random.default_rng(seed).permutation(len(train))[:count]
        for images, _ in self._batches(train.select(np.sort(chosen)), batch_size):
            yield images

    def evaluation_batches(self, limit: int | None, batch_size: int = 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Normalised float32 [b, 3, s, s] arrays and int64 labels of up to `limit` held-out images, over all classes."""
        val = self._opened().val
        chosen = np.arange(len(val)) if limit is None else spread_over_classes(val.labels, limit)
        yield from self._batches(val.select(chosen), batch_size)

    def compare(self, fp32: Session, int8: Session, limit: int) -> Comparison:
        """Answers of two models of this task on up to `limit` held-out images, by the task's metric.

        The sessions take any number of images at once. Raises UserError without images.
        """
        raise NotImplementedError

    def answers_of(self, session: Session) -> RunModel:
        """A session as a function of normalised images [b, 3, s, s]."""
        return lambda images: session.run({self.input_name: images})[self.output_names[0]]

    def _batches(self, folder: ImageFolder, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in eval_loader(folder, self.preprocessing, batch_size=batch_size, workers=0):
            yield self.normalization.apply(batch.images).numpy(), batch.labels.numpy()

    def _opened(self) -> LabelledData:
        if self.data is None:
            raise UserError("the run's images are no longer as they were; give --data DIR")
        return self.data


def spread_over_classes(labels: np.ndarray, limit: int) -> np.ndarray:
    """Up to `limit` indices, sorted, taken from all classes in turn, each class in its own order."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, rank))[:limit])
