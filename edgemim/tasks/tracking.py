"""Tracking: where the target of one crop is in another, by a one-stream tracker.

OSTrack, arXiv 2203.11991, with the lightweight study's encoders (arXiv 2404.12210). Loss: focal + 2 GIoU + 5 L1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic
import torch
from jaxtyping import Float
from torch import Tensor

from edgemim.config import Config
from edgemim.data.tracking.config import PairsConfig
from edgemim.edge.images import Preprocessing
from edgemim.edge.runtime import Session
from edgemim.edge.tracking.inference import TrackingInference
from edgemim.errors import UserError
from edgemim.models.center_head import TrackMaps, decode_boxes
from edgemim.models.elimination import keep_rate
from edgemim.models.one_stream import OneStreamTracker
from edgemim.models.tracker_sizes import TrackerForm, TrackerFormConfig, TrackerSize
from edgemim.tasks.comparison import Comparison, Limits
from edgemim.tasks.task import Task
from edgemim.tasks.tracking_comparison import compare_boxes
from edgemim.tasks.tracking_losses import tracking_losses
from edgemim.tasks.tracking_pairs import Pair, RunPairs
from edgemim.training.objective import StepOutput
from edgemim.training.recipe import Plan
from edgemim.training.schedule import warmup_cosine

if TYPE_CHECKING:
    from edgemim.data.tracking.pairs import PairLabels


class TrackingTraining(Config):
    """How a tracker learns. The defaults are OSTrack's (arXiv 2203.11991), as shares of its 300 epochs."""

    focal_weight: float = pydantic.Field(default=1.0, ge=0)
    """Weight of the heat map's loss."""
    giou_weight: float = pydantic.Field(default=2.0, ge=0)
    """Weight of the box's generalised overlap."""
    l1_weight: float = pydantic.Field(default=5.0, ge=0)
    """Weight of the box's corners."""
    elimination_start: float = pydantic.Field(default=20 / 300, ge=0, le=1)
    """Share of the run before search tokens begin to be dropped."""
    elimination_end: float = pydantic.Field(default=100 / 300, ge=0, le=1)
    """Share of the run from which on as many are dropped as the tracker's first share says."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TrackingTraining:
        if self.elimination_end < self.elimination_start:
            raise ValueError(
                f"elimination_end {self.elimination_end} lies before elimination_start {self.elimination_start}"
            )
        return self


class TrackingConfig(TrackingTraining):
    """What is learnt: to find the target of a template in a search region."""

    name: Literal["tracking"] = "tracking"
    """The task."""
    tracker: TrackerFormConfig = TrackerForm()
    """Crops, attention and head around the encoder: a named form or its settings."""
    pairs: PairsConfig = PairsConfig()
    """What is trained on: sets, their shares, and how pairs are drawn and cut."""
    schedule: Literal["step", "cosine"] = "step"
    """How the learning rate falls: at once near the end, as published, or along a cosine."""
    drop_at: float = pydantic.Field(default=240 / 300, gt=0, le=1)
    """Share of the run at which the stepped rate falls to a tenth."""
    score_bias: float | None = None
    """Where a new head's score map begins, before the sigmoid; default near 0, one half everywhere, as published.
    CenterNet's -2.19 (arXiv 1904.07850) is one in ten, which saves a short run some hundred steps."""
    backbone_rate: float = pydantic.Field(default=0.1, ge=0)
    """Learning rate of the encoder and its positions over that of the head; 0 keeps them as they were pre-trained, which
    with matching blocks is all that a few thousand still pairs can better."""

    def learning_rate(self, step: int, plan: Plan, *, peak: float, final: float) -> float:
        """The head's rate at a 0-based step of a plan."""
        if self.schedule == "cosine":
            steps = {"total_steps": plan.total_steps, "warmup_steps": plan.warmup_steps}
            return warmup_cosine(step, **steps, peak=peak, final=final)
        if step < plan.warmup_steps:
            return peak * step / plan.warmup_steps
        return peak if step < self.drop_at * plan.total_steps else max(peak / 10, final)


class TrackingTask(Task):
    """A tracker that finds the target of a template in a search region."""

    task_name = "tracking"
    limits = Limits(max_drop=1.0, min_agreement=90.0, min_cosine=0.99)
    input_name = "search"
    output_names = ("score", "size", "offset")
    model: OneStreamTracker  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: OneStreamTracker,
        preprocessing: Preprocessing,
        *,
        inference: TrackingInference | None = None,
        settings: TrackingTraining | None = None,
        pairs: RunPairs | None = None,
    ) -> None:
        super().__init__(model, (), preprocessing, None)
        self.pairs = pairs
        self.inference = inference or inference_of(model.size)
        self.settings = settings or TrackingTraining()
        self._keep_rate: float | None = None

    def facts(self) -> dict[str, Any]:
        """Kind, sizes, preprocessing and how the tracker is laid over a video."""
        return {
            "kind": self.task_name,
            "architecture": self.model.size.model_dump(mode="json"),
            "labels": [],
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "inference": self.inference.model_dump(mode="json"),
        }

    def manifest_facts(self) -> dict[str, Any]:
        """How the tracker is laid over a video, and both images that go in."""
        size = self.model.size
        inputs = {"template": (1, 3, *[size.template_size] * 2), "search": (1, 3, *[size.search_size] * 2)}
        return {"tracking": self.inference, "inputs": inputs}

    def as_cached(self) -> TrackingTask:
        """The same weights with the template's tokens seeing only each other, so that they are computed once a sequence.

        Of a tracker that was trained jointly the answers change; by how much, an evaluation tells.
        """
        if self.model.size.attention == "cached":
            return self
        size = self.model.size.model_copy(update={"attention": "cached", "elimination_blocks": ()})
        model = OneStreamTracker(size)
        model.load_state_dict(self.model.state_dict())
        inference = self.inference.model_copy(update={"form": "cached"})
        return TrackingTask(model, self.preprocessing, inference=inference, settings=self.settings, pairs=self.pairs)

    def begin_step(self, progress: float) -> None:
        """Set the share of search tokens that is kept at this point of the run."""
        size, settings = self.model.size, self.settings
        self._keep_rate = keep_rate(progress, settings.elimination_start, settings.elimination_end, size.keep[0])

    def forward(self, images: Tensor, keys: Tensor, labels: PairLabels | tuple[Tensor, Tensor, Tensor]) -> StepOutput:
        """The loss of a batch of pairs.

        Args:
            images: search regions [b, 3, s, s], uint8 or floats in [0, 1].
            keys: not used.
            labels: templates [b, 3, z, z] alike, and the target's boxes [b, 4] in template and search region: left, top,
                width, height over the crop's side.
        """
        template, template_box, search_box = labels
        rate = self._keep_rate if self.training else None
        crops = (self._normalised(template), self._normalised(images))
        maps = self.model(*crops, keep_rate=rate, template_box=template_box)
        losses, settings = tracking_losses(maps, search_box), self.settings
        loss = settings.focal_weight * losses.focal + settings.giou_weight * losses.giou
        loss = loss + settings.l1_weight * losses.l1
        parts = {name: getattr(losses, name).detach() for name in ("focal", "giou", "l1")}
        return StepOutput(loss, {"train_mean_iou": losses.mean_iou, **parts})

    @torch.no_grad()
    def predict(
        self, template: Tensor, search: Tensor, template_box: Float[Tensor, "b 4"] | None = None
    ) -> Float[Tensor, "b 4"]:
        """Boxes at the largest score (no window): left, top, width, height over the search region's side.

        Args:
            template: crops [b, 3, z, z], uint8 or floats in [0, 1].
            search: crops [b, 3, s, s] alike.
            template_box: the target in the templates; only for a tracker whose tokens on it rank.
        """
        maps = self.model(self._normalised(template), self._normalised(search), template_box=template_box)
        boxes = decode_boxes(TrackMaps(*(part.float() for part in maps)))
        return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)

    def example_input(self, batch: int = 1) -> Float[Tensor, "b 3 s s"]:
        """Normalised search regions of the right shape."""
        return super().example_input(batch)

    def example_labels(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Templates, and boxes in the middle of both crops."""
        template = torch.zeros(batch, 3, *[self.model.size.template_size] * 2, dtype=torch.uint8)
        box = torch.full((batch, 4), 0.25)
        return template, box, box

    def evaluation_pairs(self, limit: int) -> Iterator[tuple[dict[str, np.ndarray], Pair]]:
        """What a session takes of `limit` held-out pairs, and the pairs. Raises UserError if they are gone."""
        for pair in self._own_pairs().held_out(self.model.size, limit):
            yield self._fed(pair), pair

    def calibration_pairs(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """What a session takes of `count` training pairs. Raises UserError if they are gone."""
        for pair in self._own_pairs().training(self.model.size, count):
            yield self._fed(pair)

    def compare(self, fp32: Session, int8: Session, limit: int) -> Comparison:
        """Mean overlap with the target of the boxes at the largest score. Raises UserError without pairs."""
        return compare_boxes(fp32, int8, self.evaluation_pairs(limit))

    def _fed(self, pair: Pair) -> dict[str, np.ndarray]:
        crops = {"template": pair.template, "search": pair.search}
        return {name: self.preprocessing.normalise(crop.transpose(1, 2, 0)[None]) for name, crop in crops.items()}

    def _own_pairs(self) -> RunPairs:
        if self.pairs is None:
            raise UserError("the run's pictures are no longer as they were; give --data DIR")
        return self.pairs

    def _normalised(self, crop: Tensor) -> Tensor:
        return self.normalization.normalize(crop) if crop.is_floating_point() else self.normalization.apply(crop)


def inference_of(size: TrackerSize) -> TrackingInference:
    """How a tracker of this size is laid over a video: its own crops, all else as published."""
    names = ("template_size", "search_size", "template_factor", "search_factor", "size_rate")
    return TrackingInference(form=size.attention, **{name: getattr(size, name) for name in names})


def tracker_preprocessing(size: TrackerSize, **statistics: Any) -> Preprocessing:
    """Preprocessing of a tracker's crops; `statistics` are `mean` and `std` where they are not ImageNet's."""
    return Preprocessing(image_size=size.search_size, crop_pct=1.0, interpolation="bilinear", **statistics)


def build_tracking_task(facts: dict[str, Any], preprocessing: Preprocessing) -> TrackingTask:
    """The task of a run's facts, its weights freshly drawn. Raises ValueError on facts that describe no tracker."""
    size = TrackerSize.model_validate(facts["architecture"])
    inference = TrackingInference.model_validate(facts["inference"])
    return TrackingTask(OneStreamTracker(size), preprocessing, inference=inference)
