"""`edgemim convert --from ostrack`: a published tracker becomes a run for track and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
from torch import Tensor

from edgemim.config import describe
from edgemim.errors import UserError
from edgemim.models.convert.encoder import KeyFate
from edgemim.models.convert.ostrack import ostrack_size, plan_ostrack
from edgemim.models.convert.plan import Move
from edgemim.models.one_stream import OneStreamTracker
from edgemim.models.sizes import VitConfig
from edgemim.models.tracker_sizes import TrackerSize
from edgemim.models.weights import load_weights, read_tensors
from edgemim.tasks.tracking import TrackingTask, tracker_preprocessing

_HEADS = 12
_WIDTHS = (192, 768)


def read_tracker(path: Path, heads: int | None, **statistics: Any) -> tuple[TrackingTask, tuple[KeyFate, ...]]:
    """The tracker of an OSTrack file (or of the lightweight study's, named alike), and what became of each tensor.

    Args:
        path: the file.
        heads: attention heads, which it does not tell; default 12, at the two widths that were published.
        statistics: `mean` and `std` of the input's channels.

    Raises:
        UserError: naming the file, if it cannot be read, is no tracker or not wholly understood.
    """
    weights = read_tensors(path)
    try:
        plan = plan_ostrack(weights)
        size = _sized(weights, heads)
        model = OneStreamTracker(size)
        load_weights(model, plan.state(weights))
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    fates = tuple(
        KeyFate(key, tuple(weights[key].shape), step.name, "")
        if isinstance(step, Move)
        else KeyFate(key, tuple(weights[key].shape), None, step.reason)
        for key, step in plan.steps.items()
    )
    return TrackingTask(model, tracker_preprocessing(size, **statistics)), fates


def _sized(weights: dict[str, Tensor], heads: int | None) -> TrackerSize:
    patches = weights.get("backbone.patch_embed.proj.weight")
    width = 0 if patches is None else patches.shape[0]
    if heads is None and width and width not in _WIDTHS:
        raise UserError(f"has width {width}, at which no tracker was published; give --heads")
    try:
        return ostrack_size(weights, heads or _HEADS)
    except pydantic.ValidationError as error:
        raise UserError(f"makes no tracker: {describe(error, VitConfig)}") from error
