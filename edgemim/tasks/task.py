"""What fine-tuning optimises and export asks for: one interface over all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.data.image_set import ImageSet
from edgemim.data.labelled import LabelledData, open_held_out, spread_over_classes
from edgemim.data.loader import eval_loader
from edgemim.edge.images import Preprocessing
from edgemim.edge.runtime import Session
from edgemim.errors import UserError
from edgemim.models.normalization import Normalization
from edgemim.tasks.comparison import Comparison, Limits, RunModel
from edgemim.training.objective import Objective


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

    def held_out(self, data: Path | None = None) -> ImageSet:
        """The images to measure on: the run's own, or those of another set (its val or test split where it has one)."""
        return self._opened().val if data is None else open_held_out(data, self.labels)

    def export_module(self) -> nn.Module:
        """The model from normalised images to its outputs, in evaluation mode and float32."""
        return self.model.eval().float()

    def example_input(self, batch: int = 2) -> Float[Tensor, "b 3 s s"]:
        """Normalised input of the right shape."""
        size = self.preprocessing.image_size
        return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))

    def example_labels(self, batch: int) -> Tensor:
        """Labels of the right shape for so many images, all of the first class."""
        return torch.zeros(batch, dtype=torch.int64)

    def calibration_batches(self, count: int, batch_size: int = 16, seed: int = 0) -> Iterator[np.ndarray]:
        """Normalised float32 [b, 3, s, s] arrays of `count` training images (all, if fewer), drawn with the seed, of
        all classes alike."""
        train = self._opened().train
        order = np.random.default_rng(seed).permutation(len(train))
        chosen = order[spread_over_classes(train.labels[order], count)]
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

    def _batches(self, folder: ImageSet, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in eval_loader(folder, self.preprocessing, batch_size=batch_size, workers=0):
            yield self.normalization.apply(batch.images).numpy(), batch.labels.numpy()

    def _opened(self) -> LabelledData:
        if self.data is None:
            raise UserError("the run's images are no longer as they were; give --data DIR")
        return self.data
