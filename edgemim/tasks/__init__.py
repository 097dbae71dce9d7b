"""What fine-tuning optimises: the union is the registry; `load_task` opens any finished fine-tuning run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic

from edgemim.config import Presets
from edgemim.data.labelled import LabelledData
from edgemim.edge.images import Preprocessing
from edgemim.edge.segmentation import SegmentationInference
from edgemim.errors import UserError
from edgemim.models.weights import MODEL_FILE, load_weights, read_facts, read_tensors
from edgemim.run import read_record
from edgemim.tasks.classification import ClassificationConfig, ClassificationTask, build_model
from edgemim.tasks.features import FeaturesTask, open_features
from edgemim.tasks.segmentation import SegmentationConfig, SegmentationTask, build_segmenter, open_pairs
from edgemim.tasks.task import Task
from edgemim.tasks.tracking import TrackingConfig, TrackingTask, build_tracking_task
from edgemim.tasks.tracking_pairs import open_run_pairs

__all__ = [
    "ClassificationTask",
    "FeaturesTask",
    "LabelledData",
    "SegmentationTask",
    "Task",
    "TaskConfig",
    "TrackingTask",
    "load_task",
    "open_task",
]

TaskConfig = Annotated[
    ClassificationConfig | SegmentationConfig | TrackingConfig,
    pydantic.Field(discriminator="name"),
    Presets(
        {
            "classification": ClassificationConfig(),
            "segmentation": SegmentationConfig(),
            "tracking": TrackingConfig(),
        }
    ),
]


def open_task(run: Path, *, data: Path | None = None, val: Path | None = None) -> Task:
    """What a run can be exported as: the task it was fine-tuned for, or an encoder's features. Raises UserError."""
    if read_facts(run)["kind"] == "encoder":
        return open_features(run, data=val or data)
    return load_task(run, data=data, val=val)


def load_task(run: Path, *, data: Path | None = None, val: Path | None = None) -> Task:
    """Open the task of a finished fine-tuning run, with the run's own images or others.

    Where the run's images are gone the task still opens; what needs them then says so.

    Raises:
        UserError: if the run holds no such model, or its weights do not fit.
    """
    facts = read_facts(run)
    builders = {
        ClassificationTask.task_name: _classification,
        SegmentationTask.task_name: _segmentation,
        TrackingTask.task_name: _tracking,
    }
    if facts["kind"] not in builders:
        found = "an encoder" if facts["kind"] == "encoder" else f"a {facts['kind']}"
        raise UserError(f"{run} holds {found}, not a fine-tuned model; run `edgemim finetune` on it first")
    try:
        labels = tuple(facts["labels"])
        preprocessing = Preprocessing.model_validate(facts["preprocessing"])
        task = builders[facts["kind"]](facts, labels, preprocessing)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{run / 'model' / 'model.json'} does not describe a model: {error}") from error
    load_weights(task.model, read_tensors(run / "model" / MODEL_FILE))
    if isinstance(task, SegmentationTask):
        task.pairs = open_pairs(read_record(run).get("config", {}), data, val, labels)
    elif isinstance(task, TrackingTask):
        task.pairs = open_run_pairs(read_record(run).get("config", {}), data)
    else:
        task.data = _open_data(run, data, val, labels)
    return task.eval()


def _classification(facts: dict[str, Any], labels: tuple[str, ...], preprocessing: Preprocessing) -> Task:
    model = build_model(facts["architecture"], len(labels))
    return ClassificationTask(model, labels, preprocessing, None, architecture=facts["architecture"])


def _segmentation(facts: dict[str, Any], labels: tuple[str, ...], preprocessing: Preprocessing) -> Task:
    model = build_segmenter(facts["architecture"], len(labels))
    inference = SegmentationInference.model_validate(facts["inference"])
    return SegmentationTask(model, labels, preprocessing, inference, None, architecture=facts["architecture"])


def _tracking(facts: dict[str, Any], labels: tuple[str, ...], preprocessing: Preprocessing) -> Task:
    return build_tracking_task(facts, preprocessing)


def _open_data(run: Path, data: Path | None, val: Path | None, labels: tuple[str, ...]) -> LabelledData | None:
    config = read_record(run).get("config", {})
    given = data is not None
    if data is None and config.get("data"):
        data = Path(config["data"])
        val = val or (Path(config["val"]) if config.get("val") else None)
    if data is None:
        return None
    try:
        share, seed = config.get("val_share", 0.1), config.get("seed", 0)
        # Where a file named the classes, it may be gone: the model knows them.
        named = labels if config.get("classes") else None
        opened = LabelledData.open(data, val, val_share=share, seed=seed, classes=named)
        if opened.train.classes != labels:
            raise UserError(
                f"the classes of {data} are not those of the model in {run}; give the folder it was trained on"
            )
    except UserError:
        if given:
            raise
        return None  # what needs the images will say that they are gone
    return opened
