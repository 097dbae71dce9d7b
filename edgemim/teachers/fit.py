"""Which stage of a teacher, at which input size, has a feature map that meets the student's patch grid exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgemim.errors import UserError

_REMEDY = "set another 'teacher.stage' or 'teacher.input_size', or choose another teacher or encoder size"


@dataclass(frozen=True)
class Fit:
    """One stage of a model at one input size.

    Attributes:
        stage: index into the model's stages (blocks of a ViT).
        last: whether it is the last one (its map is final-normed where the model has a norm).
        stride: teacher's input pixels for one feature.
        channels: of the map.
        input_size: (height, width) of the teacher's input in pixels.
        grid: rows and columns of the map.
        summary: one line for logs.
    """

    stage: int
    last: bool
    stride: int
    channels: int
    input_size: tuple[int, int]
    grid: tuple[int, int]
    summary: str


def find_fit(
    model: nn.Module, name: str, *, image_size: int, grid: tuple[int, int], stage: int | None, input_size: int | None
) -> Fit:
    """Choose stage and input size, and set the model to that size.

    Where they are left open: the deepest stage that meets the grid on an input no larger than the teacher's own
    training size (enlarging beyond it costs time and leaves the scale that the teacher knows), else the smallest input.

    Raises:
        UserError: if nothing meets the grid, with the sizes that would.
    """
    stages = stages_of(model, name)
    if stage is not None and not 0 <= stage < len(stages):
        raise UserError(f"teacher {name} has stages 0 to {len(stages) - 1}, not {stage}; change 'teacher.stage'")
    fits = [_fit(name, index, stages, grid, image_size) for index in range(len(stages)) if stage in (None, index)]
    if input_size is not None:
        exact = [fit for fit in fits if fit.input_size == (input_size, input_size)]
        if not exact:
            raise UserError(_no_fit(name, grid, input_size, fits))
        fits = exact
    chosen = choose(fits, native=_native(model))
    set_input_size(model, name, chosen)
    _check_map(model, name, chosen)
    return chosen


def stages_of(model: nn.Module, name: str) -> list[tuple[int, int]]:
    """(stride in pixels, channels) of each stage that timm's `forward_intermediates` can give."""
    info = getattr(model, "feature_info", None)
    if info is None or not hasattr(model, "forward_intermediates"):
        raise UserError(f"teacher {name} gives no feature maps in timm; choose a model that has forward_intermediates")
    entries: list[dict[str, Any]] = list(info)
    return [(int(entry["reduction"]), int(entry["num_chs"])) for entry in entries]


def choose(fits: list[Fit], native: int) -> Fit:
    """The deepest fit whose input is at most `native` pixels high; if all are larger, the one with the smallest input."""
    affordable = [fit for fit in fits if fit.input_size[0] <= native]
    if affordable:
        return max(affordable, key=lambda fit: fit.stage)
    smallest = min(fit.input_size[0] for fit in fits)
    return max((fit for fit in fits if fit.input_size[0] == smallest), key=lambda fit: fit.stage)


def set_input_size(model: nn.Module, name: str, fit: Fit) -> None:
    """Tell a model with a fixed input size the new one (timm resamples its positions). Raises UserError if it cannot."""
    facts = getattr(model, "default_cfg", {})
    native = tuple(facts.get("input_size", (3, 0, 0))[1:])
    if hasattr(model, "set_input_size"):
        try:
            model.set_input_size(img_size=fit.input_size)  # pyright: ignore[reportCallIssue]
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"teacher {name} cannot take {_px(fit.input_size)} input: {error}; {_REMEDY}") from error
    elif facts.get("fixed_input_size") and fit.input_size != native:
        raise UserError(
            f"teacher {name} takes {_px(native)} input only, but a {_cells(fit.grid)} grid needs {_px(fit.input_size)}; "
            + _REMEDY
        )


def _check_map(model: nn.Module, name: str, fit: Fit) -> None:
    """Run the stage once on an empty image: a stride on paper is no promise about padding."""
    model.eval()
    try:
        with torch.inference_mode():
            maps = model.forward_intermediates(  # pyright: ignore[reportCallIssue]
                torch.zeros(1, 3, *fit.input_size), indices=[fit.stage], stop_early=True, intermediates_only=True
            )
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"teacher {name} cannot take {_px(fit.input_size)} input: {reason}; {_REMEDY}") from error
    shape = tuple(maps[0].shape[1:])
    if shape != (fit.channels, *fit.grid):
        raise UserError(
            f"stage {fit.stage} of teacher {name} gives {_cells(shape[-2:])} features of {shape[0]} channels on "
            f"{_px(fit.input_size)}, the student has {_cells(fit.grid)} patches; {_REMEDY}"
        )


def _fit(name: str, index: int, stages: list[tuple[int, int]], grid: tuple[int, int], image_size: int) -> Fit:
    stride, channels = stages[index]
    size = (grid[0] * stride, grid[1] * stride)
    verb = "as it is at" if size == (image_size, image_size) else f"resized from {image_size} to"
    summary = f"{name}: {_cells(grid)} features of {channels} channels, stage {index} (stride {stride}), image {verb} {_px(size)}"
    return Fit(index, index == len(stages) - 1, stride, channels, size, grid, summary)


def _native(model: nn.Module) -> int:
    return int(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[1])


def _no_fit(name: str, grid: tuple[int, int], input_size: int, fits: list[Fit]) -> str:
    sizes = sorted({fit.input_size[0] for fit in fits})
    return (
        f"on {input_size} px no stage of teacher {name} asked for meets the student's {_cells(grid)} grid exactly; "
        f"set 'teacher.input_size' to {' or '.join(map(str, sizes))}, or leave it out"
    )


def _cells(grid: tuple[int, ...]) -> str:
    return "×".join(map(str, grid))


def _px(size: tuple[int, ...]) -> str:
    return f"{size[0]} px" if size[0] == size[-1] else f"{_cells(size)} px"
