"""Where a segmentation model's encoder comes from: a pre-training run, a fine-tuned classifier, or nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from edgemim.commands.initial import add_tables, described, with_positions
from edgemim.errors import UserError
from edgemim.models.resizing import resize_positions
from edgemim.models.semantic_fpn import SemanticFpn
from edgemim.models.sizes import EncoderSize, RelativePositions, RelativeVitConfig
from edgemim.models.weights import load_weights, read_tensors
from edgemim.run import find_run


@dataclass(frozen=True)
class Start:
    """What a model begins with.

    Attributes:
        run: the run that weights come from; None from scratch.
        source: the encoder of that run.
        encoder: the encoder that is built: at the crop's size, with the relative positions asked for.
        statistics: the run's mean and std.
    """

    run: Path | None
    source: EncoderSize
    encoder: EncoderSize
    statistics: dict[str, Any]


def find_start(init: str, encoder: EncoderSize, added: RelativePositions | None, crop_size: int) -> Start:
    """Choose source and sizes; nothing is built yet.

    Args:
        init: a run's folder, newest, or scratch.
        encoder: the network, for scratch.
        added: relative positions that a plain vision transformer gains.
        crop_size: side of the square input, pixels.

    Raises:
        UserError: if there is no such run, or the network does not go with crop size or positions.
    """
    run, statistics = None, {}
    if init.startswith("timm:"):
        raise UserError(f"--task segmentation starts from a run or from scratch, not from {init}")
    if init != "scratch":
        run = find_run(None if init == "newest" else Path(init), "pretrain")
        encoder, statistics = described(run, "segmentation")
    source = encoder.as_classifier()
    encoder = with_positions(source, added, run)
    try:
        sized = type(encoder).model_validate({**encoder.model_dump(), "image_size": crop_size})
    except pydantic.ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"task.crop_size {crop_size} does not go with the encoder: {reason}") from error
    return Start(run, source, sized, statistics)


def load_start(model: SemanticFpn, start: Start, weights_file: str) -> str:
    """Put the run's weights into the model's encoder; returns a sentence on where they came from. Raises UserError.

    Positions are interpolated where the sizes differ. A classifier's head is left behind.
    """
    if start.run is None:
        return "weights: from scratch"
    weights = read_tensors(start.run / "model" / weights_file)
    weights = resize_positions(weights, start.source, _like(start.source, start.encoder))
    may_drop, may_miss = ("head.", "fc_norm.", "head_dist.", "dist_norm."), ("norm.", "head.")
    if isinstance(start.encoder, RelativeVitConfig) and not isinstance(start.source, RelativeVitConfig):
        weights, left, new = add_tables(weights, start.encoder, model.encoder.vit.state_dict())
        may_drop, may_miss = may_drop + left, may_miss + new
    report = load_weights(model.encoder.vit, weights, may_drop=may_drop, may_miss=may_miss)
    old, new = start.source.image_size, start.encoder.image_size
    note = "" if old == new else f"; positions interpolated from {old} to {new} pixels"
    return f"weights: {start.run} ({report}{note})"


def _like(source: EncoderSize, encoder: EncoderSize) -> EncoderSize:
    return source.model_copy(update={"image_size": encoder.image_size})
