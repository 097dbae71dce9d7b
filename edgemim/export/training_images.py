"""A task's training images for learning without labels: how many there are, their name, and batches of a whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgemim.data.loader import build_loader
from edgemim.data.segmentation.loader import build_pair_loader
from edgemim.data.segmentation.transforms import SegmentationTransform
from edgemim.data.stream import BatchStream
from edgemim.data.transforms import PretrainTransform
from edgemim.errors import UserError
from edgemim.tasks.classification import ClassificationTask
from edgemim.tasks.segmentation import SegmentationTask
from edgemim.tasks.task import Task

_CROPS = PretrainTransform(crop_scale=(0.5, 1.0))
_SQUARES = SegmentationTransform(largest_share=1.0, photometric=False)
"""Light crops: the ranges of activations should be those of the images that a user shows."""


@dataclass(frozen=True)
class TrainingImages:
    """Training images of a task.

    Attributes:
        count: how many.
        fingerprint: names the list of them.
        stream: batches by the keywords of `edgemim.data.loader.build_loader`; labels come along as they are.
    """

    count: int
    fingerprint: str
    stream: Callable[..., BatchStream]

    @staticmethod
    def of(task: Task) -> TrainingImages:
        """Those of a classifier or a segmentation model. Raises UserError if they are gone, or the task is another."""
        size = task.preprocessing.image_size
        if isinstance(task, ClassificationTask) and task.data is not None:
            train, crop = task.data.train, _CROPS.build(size)
            return TrainingImages(len(train), train.fingerprint, lambda **o: build_loader(train, crop, **o))
        if isinstance(task, SegmentationTask) and task.pairs is not None:
            pairs, square = task.pairs.train, _SQUARES.build(size, task.inference.short_side)
            return TrainingImages(len(pairs), pairs.fingerprint, lambda **o: build_pair_loader(pairs, square, **o))
        if isinstance(task, ClassificationTask | SegmentationTask):
            raise UserError("the run's images are no longer as they were; give --data DIR")
        raise UserError(f"quantization-aware fine-tuning is not there for {task.task_name}; leave --aware.epochs out")
