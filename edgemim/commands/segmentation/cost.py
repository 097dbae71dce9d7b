"""What `edgemim cost` counts of a segmentation recipe: the task, its weights drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgemim.commands.segmentation.initial import find_start
from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError
from edgemim.tasks.segmentation import SegmentationConfig, SegmentationTask, build_segmenter

if TYPE_CHECKING:
    from edgemim.commands.finetune import FinetuneConfig


def random_segmenter(recipe: FinetuneConfig, task: SegmentationConfig, classes: int) -> SegmentationTask:
    """The task that a recipe trains, of so many classes, on torch's default device.

    The encoder is that of the run to start from where it is here, else the recipe's own. Raises UserError if they do
    not go together.
    """
    here = recipe.init not in ("newest", "scratch") and Path(recipe.init).is_dir()
    init = recipe.init if here or recipe.init.startswith("timm:") else "scratch"
    start = find_start(init, recipe.encoder, recipe.relative_positions, task.crop_size)
    architecture = {"vit": start.encoder.model_dump(mode="json"), "head": task.head.model_dump(mode="json")}
    try:
        model = build_segmenter(architecture, classes, drop_path=recipe.drop_path)
    except ValueError as error:
        raise UserError(f"task.head: {error}") from error
    preprocessing = Preprocessing(image_size=task.crop_size, crop_pct=1.0)
    labels = tuple(map(str, range(classes)))
    return SegmentationTask(model, labels, preprocessing, task.inference, None, architecture=architecture)
