"""Semantic segmentation: a class for each pixel, by Semantic-FPN on an encoder's taps.

Loss: cross entropy of the logits at the masks' size, summed over the pixels that have a class, over all pixels, as in
mmsegmentation, with which the lightweight study (arXiv 2404.12210) trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from edgemim.config import Config
from edgemim.data.segmentation.folder import SegmentationData, SegmentationFolder, open_held_out
from edgemim.data.segmentation.layouts import LayoutName
from edgemim.data.segmentation.transforms import SegmentationTransform
from edgemim.edge.images import Preprocessing
from edgemim.edge.runtime import Session
from edgemim.edge.segmentation import IGNORE, SegmentationInference, resize_image
from edgemim.errors import UserError
from edgemim.models.build import parse_encoder
from edgemim.models.resizing import resize_positions
from edgemim.models.semantic_fpn import SemanticFpn, SemanticFpnConfig, resized, slide_logits
from edgemim.models.weights import load_weights
from edgemim.tasks.comparison import Comparison, Limits, compare_pixels
from edgemim.tasks.task import Task
from edgemim.training.objective import StepOutput
from edgemim.training.recipe import Plan
from edgemim.training.schedule import warmup_cosine, warmup_poly

_MOST_LOGITS = 2**27
_VIT = "encoder.vit."


class SegmentationConfig(Config):
    """What is learnt: a class for each pixel. Defaults are the lightweight study's for ADE20K (arXiv 2404.12210)."""

    name: Literal["segmentation"] = "segmentation"
    """The task."""
    layout: LayoutName | None = None
    """How --data is laid out: pairs (images/ and masks/), ade20k, voc or camvid; default by its folders."""
    classes: Path | None = None
    """File with the class names (a name a line, a JSON list, or name to colour); default that in --data."""
    crop_size: int = pydantic.Field(default=512, ge=8)
    """Side of the square that is trained on and that the model takes, pixels; a multiple of the encoder's patch."""
    head: SemanticFpnConfig = SemanticFpnConfig()
    """Semantic-FPN."""
    transform: SegmentationTransform = SegmentationTransform()
    """Augmentation."""
    inference: SegmentationInference = SegmentationInference()
    """How images of any size are labelled."""
    schedule: Literal["poly", "cosine"] = "poly"
    """How the learning rate falls after warm-up."""
    poly_power: float = pydantic.Field(default=1.0, gt=0)
    """Power of the falling rate; 1 is a straight line."""

    def learning_rate(self, step: int, plan: Plan, *, peak: float, final: float) -> float:
        """The rate of a 0-based step of a plan."""
        if self.schedule == "poly":
            return warmup_poly(
                step,
                total_steps=plan.total_steps,
                warmup_steps=plan.warmup_steps,
                peak=peak,
                final=final,
                power=self.poly_power,
            )
        steps = {"total_steps": plan.total_steps, "warmup_steps": plan.warmup_steps}
        return warmup_cosine(step, **steps, peak=peak, final=final)


SEGMENTATION_RECIPE: dict[str, Any] = {
    "epochs": 127.0,
    "warmup_epochs": 1.2,
    "batch_size": 16,
    "base_lr": 1.6e-3,
    "min_lr": 0.0,
    "layer_decay": 0.8,
    "drop_path": 0.1,
}
"""Settings of training that differ from a classifier's: the study's 160,000 steps on ADE20K, 1e-4 at batch 16."""


class SegmentationTask(Task):
    """A model that names the class of each pixel."""

    task_name = "segmentation"
    limits = Limits(max_drop=0.5)
    model: SemanticFpn  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: SemanticFpn,
        labels: tuple[str, ...],
        preprocessing: Preprocessing,
        inference: SegmentationInference,
        pairs: SegmentationData | None,
        *,
        architecture: dict[str, Any],
    ) -> None:
        super().__init__(model, labels, preprocessing, None)
        inference.fits(preprocessing.image_size)
        self.inference = inference
        self.pairs = pairs
        self.architecture = architecture

    def facts(self) -> dict[str, Any]:
        """Kind, architecture, labels, preprocessing and how windows are laid."""
        return {
            "kind": self.task_name,
            "architecture": self.architecture,
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "inference": self.inference.model_dump(mode="json"),
        }

    def manifest_facts(self) -> dict[str, Any]:
        """How windows are laid over an image."""
        return {"inference": self.inference}

    def at_size(self, image_size: int) -> SegmentationTask:
        """The same model for squares of another size: positions are interpolated, windows lie in proportion.

        Raises UserError if the encoder cannot take that size.
        """
        old, source = self.preprocessing.image_size, self.model.encoder.config
        if image_size == old:
            return self
        try:
            target = type(source).model_validate({**source.model_dump(), "image_size": image_size})
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"the model cannot take squares of {image_size} pixels: {reason}") from error
        architecture = {**self.architecture, "vit": target.model_dump(mode="json")}
        model = build_segmenter(architecture, len(self.labels))
        weights = self.model.state_dict()
        vit = {key.removeprefix(_VIT): value for key, value in weights.items() if key.startswith(_VIT)}
        resized_vit = resize_positions(vit, source, target)
        load_weights(model, {**weights, **{_VIT + key: value for key, value in resized_vit.items()}})
        stride = max(1, round(self.inference.stride * image_size / old))
        short_side = max(self.inference.short_side, image_size)
        inference = self.inference.model_copy(update={"stride": stride, "short_side": short_side})
        preprocessing = self.preprocessing.model_copy(update={"image_size": image_size})
        task = SegmentationTask(model, self.labels, preprocessing, inference, self.pairs, architecture=architecture)
        return task.train(self.training)

    def forward(self, images: Tensor, keys: Tensor, labels: Tensor) -> StepOutput:
        """Loss of uint8 images [b, 3, s, s] with uint8 masks [b, s, s]."""
        coarse = self.model.coarse_logits(self.normalization.apply(images))
        labels = labels.long()
        logits = resized(coarse.float(), labels.shape[-2:])
        accuracy = pixel_accuracy(logits.detach(), labels)
        return StepOutput(segmentation_loss(logits, labels), {"train_pixel_accuracy": accuracy})

    @torch.no_grad()
    def predict(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """The class of each pixel of one image. Raises UserError if the outputs are not finite."""
        height, width = image.shape[:2]
        size = self.preprocessing.image_size
        pixels = np.array(resize_image(image, *self.inference.working_size(height, width, size)))
        device = next(self.model.parameters()).device
        x = self.normalization.apply(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device))
        logits = slide_logits(lambda window: self.model(window).float(), x, size, min(self.inference.stride, size))
        if not torch.isfinite(logits).all():
            raise UserError("the model's outputs are not finite: it diverged, or its weights are damaged")
        return resized(logits, (height, width))[0].argmax(0).to(torch.uint8).cpu().numpy()

    def held_out_pairs(self) -> SegmentationFolder:
        """The run's own held-out images and masks. Raises UserError if they are gone."""
        return self._own_pairs().val

    def example_labels(self, batch: int) -> UInt8[Tensor, "b s s"]:
        """Masks of the right shape for so many images, all of the first class."""
        return torch.zeros(batch, *[self.preprocessing.image_size] * 2, dtype=torch.uint8)

    def compare(self, fp32: Session, int8: Session, limit: int) -> Comparison:
        """mIoU, each image labelled in windows or whole as the task says. Raises UserError without images."""
        folder = self.held_out_pairs()
        folder = folder.select(_spread(len(folder), limit))
        models = self.answers_of(fp32), self.answers_of(int8)
        return compare_pixels(*models, folder, self.preprocessing, self.inference)

    def calibration_batches(self, count: int, batch_size: int = 16, seed: int = 0) -> Iterator[np.ndarray]:
        """Normalised float32 [b, 3, s, s] arrays of `count` training images (all, if fewer), drawn with the seed."""
        train = self._own_pairs().train
        chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:count])
        for images, _ in self._squares(train.select(chosen), batch_size):
            yield images

    def evaluation_batches(self, limit: int | None, batch_size: int = 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Normalised float32 [b, 3, s, s] arrays and int64 masks [b, s, s] of up to `limit` held-out images.

        The square in the middle of each image as it is labelled; fewer than `limit` where all logits together would
        take more than half a gibibyte.
        """
        val = self._own_pairs().val
        logits = len(self.labels) * self.preprocessing.image_size**2
        chosen = _spread(len(val), min(limit or len(val), max(4, _MOST_LOGITS // logits)))
        yield from self._squares(val.select(chosen), max(1, min(batch_size, _MOST_LOGITS // (8 * logits))))

    def _squares(self, folder: SegmentationFolder, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(folder), batch_size):
            squares = [self._middle(*folder.read(i)) for i in range(start, min(start + batch_size, len(folder)))]
            pixels = np.stack([pixels for pixels, _ in squares])
            masks = np.stack([mask for _, mask in squares])
            yield self.preprocessing.normalise(pixels), masks.astype(np.int64)

    def _middle(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self.preprocessing.image_size
        rows, columns = self.inference.working_size(mask.shape[0], mask.shape[1], size)
        pixels = resize_image(image, rows, columns)
        y = ((np.arange(rows) + 0.5) * mask.shape[0] / rows).astype(int)
        x = ((np.arange(columns) + 0.5) * mask.shape[1] / columns).astype(int)
        top, left = (rows - size) // 2, (columns - size) // 2
        place = (slice(top, top + size), slice(left, left + size))
        return pixels[place], mask[y][:, x][place]

    def _own_pairs(self) -> SegmentationData:
        if self.pairs is None:
            raise UserError("the run's images and masks are no longer as they were; give --data DIR")
        return self.pairs


def _spread(count: int, limit: int) -> np.ndarray:
    """Up to `limit` of the indices below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int))


def segmentation_loss(logits: Float[Tensor, "b classes h w"], labels: Tensor) -> Tensor:
    """Cross entropy with int64 masks [b, h, w] of which 255 does not count; divided by all pixels, these included."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / labels.numel()


def pixel_accuracy(logits: Float[Tensor, "b classes h w"], labels: Tensor) -> Tensor:
    """Share of the pixels with a class whose largest logit is that class's; a scalar."""
    known = labels != IGNORE
    return ((logits.argmax(1) == labels) & known).sum() / known.sum().clamp(min=1)


def build_segmenter(architecture: dict[str, Any], classes: int, *, drop_path: float = 0.0) -> SemanticFpn:
    """The network that an architecture record names: `{"vit": {...}, "head": {...}}`."""
    head = SemanticFpnConfig.model_validate(architecture["head"])
    return SemanticFpn(parse_encoder(architecture["vit"]), head, classes, drop_path)


def open_pairs(
    recorded: dict[str, Any], data: Path | None, val: Path | None, labels: tuple[str, ...]
) -> SegmentationData | None:
    """The images and masks of a run's recorded configuration, or others; None where the run's own are gone.

    Raises:
        UserError: if those given are no segmentation set of the same classes.
    """
    own = data is None
    if own and recorded.get("data"):
        data, val = Path(recorded["data"]), val or (Path(recorded["val"]) if recorded.get("val") else None)
    if data is None:
        return None
    settings = recorded.get("task", {}) if own else {}
    classes = Path(settings["classes"]) if settings.get("classes") else None
    try:
        if not own and val is None:
            pairs = open_held_out(data, labels)
            return SegmentationData(pairs, pairs, f"folder {data}", "pairs")
        opened = SegmentationData.open(
            data,
            val,
            layout=settings.get("layout"),
            classes=classes,
            val_share=recorded.get("val_share", 0.1),
            seed=recorded.get("seed", 0),
        )
        if opened.train.classes != labels:
            raise UserError(f"the classes of {data} are not those of the model; give the set it was trained on")
    except UserError:
        if not own:
            raise
        return None  # what needs the images will say that they are gone
    return opened
