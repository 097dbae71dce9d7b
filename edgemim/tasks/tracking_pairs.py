"""A tracking run's own pairs, opened again: held-out ones to measure on, others to calibrate with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic

from edgemim.config import describe
from edgemim.data.tracking.config import PairsConfig
from edgemim.data.tracking.loader import held_out_batches
from edgemim.data.tracking.opening import TrackingData, open_tracking_data
from edgemim.data.tracking.transforms import PairTransform
from edgemim.errors import UserError
from edgemim.models.tracker_sizes import TrackerForm


class Pair(NamedTuple):
    """One pair as a session takes it, and what is true of it."""

    template: np.ndarray
    """uint8 [3, z, z]."""
    search: np.ndarray
    """uint8 [3, s, s]."""
    template_box: np.ndarray
    """float32 [4]: left, top, width, height over the crop's side."""
    search_box: np.ndarray
    """float32 [4], likewise."""


@dataclass(frozen=True)
class RunPairs:
    """Both parts of a run's data, and how its crops jitter."""

    data: TrackingData
    transform: PairTransform
    seed: int

    def held_out(self, form: TrackerForm, count: int) -> Iterator[Pair]:
        """`count` held-out pairs, the same at every call. Raises UserError where pictures cannot be read."""
        return self._pairs(form, count, held=True)

    def training(self, form: TrackerForm, count: int) -> Iterator[Pair]:
        """`count` pairs of the training part, without augmentation but the jitter of the search region."""
        return self._pairs(form, count, held=False)

    def _pairs(self, form: TrackerForm, count: int, *, held: bool) -> Iterator[Pair]:
        sizes, factors = (form.template_size, form.search_size), (form.template_factor, form.search_factor)
        transform = self.transform.without_chance().build(sizes, factors)
        mixture = self.data.val if held else self.data.train
        for batch in held_out_batches(mixture, transform, count=count, batch_size=1, seed=self.seed):
            yield Pair(*(part[0].numpy() for part in (batch.template, batch.search, *batch.labels[1:])))


def open_run_pairs(recorded: dict[str, Any], data: Path | None) -> RunPairs | None:
    """The pairs of a run's recorded configuration, or of another folder; None where the run's own are gone.

    Raises:
        UserError: if those given are no tracking set.
    """
    own = data is None
    root = data or (Path(recorded["data"]) if recorded.get("data") else None)
    settings = recorded.get("task", {}).get("pairs", {})
    seed = recorded.get("seed", 0)
    try:
        config = PairsConfig.model_validate(settings)
        opened = open_tracking_data(config, root, val_share=recorded.get("val_share", 0.1), seed=seed)
    except pydantic.ValidationError as error:
        raise UserError(f"the run's record does not say what its pairs are: {describe(error, PairsConfig)}") from error
    except UserError:
        if not own:
            raise
        return None  # what needs the pairs will say that they are gone
    return RunPairs(opened, config.transform, seed)
