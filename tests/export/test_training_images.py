"""Training images of a task, as they are learnt from without labels."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from edgemim.errors import UserError
from edgemim.export.training_images import TrainingImages
from edgemim.tasks import load_task

OPTIONS = {"batch_size": 8, "seed": 1, "total_steps": 3, "workers": 0}


def test_of_a_classifier(task) -> None:
    images = TrainingImages.of(task)
    assert (images.count, images.fingerprint) == (len(task.data.train), task.data.train.fingerprint)
    batches = list(images.stream(**OPTIONS))
    assert [tuple(batch.images.shape) for batch in batches] == [(8, 3, 64, 64)] * 3
    rest = list(images.stream(start_step=2, **OPTIONS))
    assert rest[0].images.equal(batches[2].images)


def test_of_a_segmentation_model(segmentation_run) -> None:
    task = load_task(segmentation_run)
    size = task.preprocessing.image_size
    batch = next(iter(TrainingImages.of(task).stream(**OPTIONS)))
    assert tuple(batch.images.shape) == (8, 3, size, size)


def test_gone_or_of_another_task(task) -> None:
    from edgemim.tasks.classification import ClassificationTask

    bare = ClassificationTask(task.model, task.labels, task.preprocessing, None, architecture=task.architecture)
    with pytest.raises(UserError, match="no longer as they were; give --data DIR"):
        TrainingImages.of(bare)
    bare.__class__ = type("Other", (task.__class__.__mro__[1],), {"task_name": "tracking"})
    with pytest.raises(UserError, match=r"not there for tracking; leave --aware\.epochs out"):
        TrainingImages.of(bare)
