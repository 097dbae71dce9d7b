"""What `edgemim cost` counts of a tracking recipe: the task, its weights drawn at random; one image is one pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgemim.commands.tracking.start import find_tracker_start
from edgemim.models.one_stream import OneStreamTracker
from edgemim.tasks.tracking import TrackingConfig, TrackingTask, tracker_preprocessing

if TYPE_CHECKING:
    from edgemim.commands.finetune import FinetuneConfig


def random_tracker(recipe: FinetuneConfig, task: TrackingConfig) -> TrackingTask:
    """The task that a recipe trains, on torch's default device, with all the elimination that its run ends with.

    The encoder is that of the run to start from where it is here, else the recipe's own. Raises UserError if they do
    not go together.
    """
    here = recipe.init not in ("newest", "scratch") and Path(recipe.init).is_dir()
    start = find_tracker_start(recipe.init if here else "scratch", recipe.encoder, task.tracker)
    return TrackingTask(
        OneStreamTracker(start.size, recipe.drop_path), tracker_preprocessing(start.size), settings=task
    )
