"""Features of images: a pre-trained encoder as it is, its patch tokens pooled as `edgemim probe` pools them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pydantic
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.data.image_set import ImageSet
from edgemim.data.sources import find_sources
from edgemim.edge.images import Preprocessing
from edgemim.edge.runtime import Session
from edgemim.errors import UserError
from edgemim.models.encoder import Encoder
from edgemim.models.weights import load_encoder, read_facts
from edgemim.run import read_record
from edgemim.tasks.comparison import Comparison
from edgemim.tasks.task import Task

NO_INT8 = "INT8 of features has no gate yet; run `edgemim finetune --init {run}` and quantise that model"


class PooledFeatures(nn.Module):
    """Normalised images to the mean of their patch tokens behind the encoder's final norm."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b width"]:
        """Features of images."""
        return self.encoder(images).pooled(self.encoder.config.depth)


class FeaturesTask(Task):
    """A pre-trained encoder that is exported without fine-tuning: there are no classes, and nothing is learnt."""

    task_name = "features"
    output_names = ("features",)

    def __init__(self, encoder: Encoder, preprocessing: Preprocessing, images: ImageSet | None, *, run: Path) -> None:
        super().__init__(PooledFeatures(encoder), (), preprocessing, None)
        self.images = images
        self.run = run

    def held_out(self, data: Path | None = None) -> ImageSet:
        """The images to compare on: the run's own, or those of another set; labels are not needed. Raises UserError."""
        if data is not None:
            return find_sources(data).measured.open()
        if self.images is None:
            raise UserError(
                f"{self.run} names no images that are still there; give --data DIR with images to compare on"
            )
        return self.images

    def evaluation_batches(self, limit: int | None, batch_size: int = 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Normalised float32 [b, 3, s, s] arrays and labels (-1: none) of up to `limit` images, evenly over the set."""
        images = self.held_out()
        count = len(images) if limit is None else min(limit, len(images))
        chosen = np.arange(count) * len(images) // max(count, 1)
        yield from self._batches(images.select(chosen), batch_size)

    def calibration_batches(self, count: int, batch_size: int = 16, seed: int = 0) -> NoReturn:
        """Raises UserError: nothing says yet how far INT8 features may be off."""
        raise UserError(NO_INT8.format(run=self.run))

    def compare(self, fp32: Session, int8: Session, limit: int) -> Comparison:
        """Raises UserError, as there is no gate."""
        raise UserError(NO_INT8.format(run=self.run))


def open_features(run: Path, *, data: Path | None = None) -> FeaturesTask:
    """The encoder of a pre-training run or a converted checkpoint, with the run's own images or others.

    Where the run's images are gone the task still opens; what needs them then says so.

    Raises:
        UserError: if the run holds no encoder, its weights do not fit, or there are no images in `data`.
    """
    encoder = load_encoder(run)
    try:
        preprocessing = Preprocessing.model_validate(read_facts(run)["preprocessing"])
    except (KeyError, pydantic.ValidationError) as error:
        raise UserError(f"{run / 'model' / 'model.json'} does not describe a model: {error}") from error
    task = FeaturesTask(encoder, preprocessing, _open_images(read_record(run).get("config", {}), data), run=run)
    task.eval()
    return task


def _open_images(config: dict[str, Any], data: Path | None) -> ImageSet | None:
    if data is not None:
        return find_sources(data).measured.open()
    own = config.get("data")
    try:
        return find_sources(Path(own)).measured.open() if own else None
    except UserError:
        return None  # what needs the images will say that they are gone
