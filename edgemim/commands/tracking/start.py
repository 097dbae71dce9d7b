"""Where a tracker's weights come from: a pre-training run, another tracker, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.models.build import parse_encoder
from edgemim.models.one_stream import OneStreamTracker, initialise_from, interpolate_positions
from edgemim.models.sizes import EncoderSize, VitConfig
from edgemim.models.tracker_sizes import TrackerForm, TrackerSize
from edgemim.models.weights import MODEL_FILE, load_weights, read_facts, read_tensors
from edgemim.run import find_run


@dataclass(frozen=True)
class TrackerStart:
    """What a tracker begins with.

    Attributes:
        run: the run that weights come from; None from scratch.
        size: the tracker that is built.
        statistics: the run's mean and std.
        tracker: sizes of the tracker in the run; None where it holds an encoder.
    """

    run: Path | None
    size: TrackerSize
    statistics: dict[str, Any]
    tracker: TrackerSize | None = None


def find_tracker_start(init: str, encoder: EncoderSize, form: TrackerForm) -> TrackerStart:
    """Choose run and sizes; nothing is built yet.

    Args:
        init: a run's folder, newest (of pre-training), or scratch.
        encoder: the network, for scratch; a run brings its own.
        form: crops, attention and head.

    Raises:
        UserError: if there is no such run, it holds neither encoder nor tracker, or the form does not go with it.
    """
    if init.startswith("timm:"):
        raise UserError(f"--task tracking starts from a run or from scratch, not from {init}")
    if init == "scratch":
        return TrackerStart(None, _sized(form, encoder), {})
    run = find_run(None if init == "newest" else Path(init), "pretrain")
    facts = read_facts(run)
    try:
        statistics = {key: facts["preprocessing"][key] for key in ("mean", "std")}
        if facts["kind"] == "tracking":
            known = TrackerSize.model_validate(facts["architecture"])
            return TrackerStart(run, _sized(form, known.encoder), statistics, known)
        if facts["kind"] == "encoder":
            found = parse_encoder(facts["encoder"])
        elif facts["kind"] == "classification" and "vit" in facts["architecture"]:
            found = parse_encoder(facts["architecture"]["vit"])
        else:
            raise UserError(f"{run} holds a {facts['kind']} model, which a tracker cannot start from")
    except (KeyError, TypeError, pydantic.ValidationError) as error:
        raise UserError(f"{run / 'model' / 'model.json'} does not describe a model: {error}") from error
    return TrackerStart(run, _sized(form, found), statistics)


def _sized(form: TrackerForm, encoder: EncoderSize) -> TrackerSize:
    if not isinstance(encoder, VitConfig):
        raise UserError(f"a tracker is built on a plain vision transformer, not on a {encoder.name}")
    try:
        return form.on(encoder)
    except pydantic.ValidationError as error:
        raise UserError(f"task.tracker: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def build_tracker(
    start: TrackerStart, drop_path: float, score_bias: float | None = None
) -> tuple[OneStreamTracker, str]:
    """The network with its initial weights, and a sentence on where they came from; `score_bias` is what a new head's
    score map begins with, before the sigmoid. Raises UserError."""
    model = OneStreamTracker(start.size, drop_path)
    last = model.head.score[-1]
    if score_bias is not None:
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.constant_(last.bias, score_bias)
    if start.run is None:
        return model, "weights: from scratch"
    weights = read_tensors(start.run / "model" / MODEL_FILE)
    if start.tracker is None:
        report, note = initialise_from(model, weights, start.size.encoder)
        return model, f"weights: {start.run} ({report}; {note})"
    fitted = resize_tracker(weights, start.tracker, start.size)
    if start.tracker.head_width < start.size.head_width:
        fitted |= widen_head(fitted, model.state_dict())
    report = load_weights(model, fitted, may_drop=("head.",), may_miss=("head.",))
    return model, f"weights: the tracker in {start.run} ({report})"


def resize_tracker(weights: dict[str, Tensor], source: TrackerSize, target: TrackerSize) -> dict[str, Tensor]:
    """A tracker's weights with positions for crops of other sizes, interpolated bicubically."""
    fitted = dict(weights)
    for name in ("template", "search"):
        side, new = getattr(source, f"{name}_grid"), getattr(target, f"{name}_grid")
        key = f"{name}_positions"
        fitted[key] = interpolate_positions(weights[key], (side, side), new)
    return fitted


def widen_head(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a wider head that answers as a narrower one does: the old channels stand first and do not listen to
    the new ones, which are as `fresh` has them (Net2Net, arXiv 1511.05641).

    Args:
        weights: a tracker's, with the narrower head.
        fresh: those of the wider one as it was initialised.
    """
    widened = {}
    for key, new in fresh.items():
        if not key.startswith("head.") or key not in weights:
            continue
        old, value = weights[key], new.clone()
        if old.dim() > 1:
            value[: len(old)] = 0
            value[: len(old), : old.shape[1]] = old
        elif old.dim() == 1:
            value[: len(old)] = old
        widened[key] = value
    return widened
