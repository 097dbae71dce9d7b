"""A frozen network that gives one feature vector for every patch of the student; it owns its resize and normalisation."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.hiera import Hiera
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.teachers.fit import Fit, find_fit
from edgemim.teachers.fold import fold_norms

# Small pieces stay in the CPU's cache: 3.6 ms an image in pieces of 8, 9.4 in pieces of 64 (EfficientNet-Lite0 at
# 128 px up to stride 16, one thread of an EPYC with 32 MiB of L3, channels-last, norms not folded).
_CPU_PIECE = 8


class Teacher(nn.Module):
    """Features of a frozen timm model on the student's own grid; never trained, never in training mode.

    Attributes:
        grid: rows and columns, equal to the student's.
        channels: length of a feature vector.
        summary: which stage, stride and input size were chosen, for logs and run.json.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, fit: Fit, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.grid, self.channels, self.summary = fit.grid, fit.channels, fit.summary
        self.input_size, self.stage = fit.input_size, fit.stage
        # Convolutional networks measure faster channels-last (0.46 against 0.53 s for 128 images, pieces of 8).
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        self._memory_format = torch.channels_last if convolutions > 4 else torch.contiguous_format
        self.model = model.to(memory_format=self._memory_format)
        self._options = intermediate_options(model, fit)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode whatever is asked, so that a parent's `.train()` moves no batch statistics."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """Features of every patch, row-major, [b, rows * columns, channels].

        Args:
            images: the student's view in [0, 1], not normalised; any size, resized (bicubic, antialias) to the
                teacher's input.

        Returns:
            A plain tensor without gradient, fit to be a regression target.
        """
        with torch.inference_mode():
            pieces = images.split(_CPU_PIECE) if images.device.type == "cpu" else (images,)
            features = torch.cat([self._features(piece) for piece in pieces])
        # A tensor born in inference mode cannot be saved for a backward pass; its clone can.
        return features.clone()

    def _features(self, images: Tensor) -> Tensor:
        x = self.prepare(images).to(memory_format=self._memory_format)
        maps = self.model.forward_intermediates(x, **self._options)[0]  # pyright: ignore[reportCallIssue]
        return maps.flatten(2).transpose(1, 2)

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Resize images in [0, 1] to the teacher's input and normalise them as the teacher was trained."""
        if tuple(images.shape[-2:]) != self.input_size:
            images = F.interpolate(images, size=self.input_size, mode="bicubic", antialias=True, align_corners=False)
        # Bicubic overshoots; image files, which the teacher was trained on, cannot.
        return (images.clamp(0, 1) - self.mean) / self.std


def intermediate_options(model: nn.Module, fit: Fit) -> dict[str, Any]:
    """Keywords of timm's `forward_intermediates` for one stage's map as [b, c, rows, columns]."""
    options: dict[str, Any] = {"indices": [fit.stage], "stop_early": True, "intermediates_only": True}
    # Hiera takes the keyword and refuses it.
    keywords = inspect.signature(model.forward_intermediates).parameters  # pyright: ignore[reportArgumentType]
    if fit.last and not isinstance(model, Hiera) and "norm" in keywords:
        options["norm"] = True
    return options


def build_teacher(
    model: nn.Module,
    name: str,
    *,
    image_size: int,
    student_grid: tuple[int, int],
    stage: int | None,
    input_size: int | None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Teacher:
    """Freeze a timm model as a teacher whose feature map meets the student's grid exactly.

    Args:
        model: any timm model with `forward_intermediates`, weights loaded.
        name: what to call it in messages.
        image_size: side of the student's square input in pixels.
        student_grid: rows and columns of the student's patches.
        stage: index of the stage (0 = first), None to choose.
        input_size: side of the teacher's square input in pixels, None to choose.
        mean: of a channel on the scale [0, 1]; default the model's own, else ImageNet's.
        std: as `mean`.

    Raises:
        UserError: if no stage meets the grid, or not the one asked for; it says what would.
    """
    facts = getattr(model, "default_cfg", {})
    fit = find_fit(model, name, image_size=image_size, grid=student_grid, stage=stage, input_size=input_size)
    prune_after(model, fit)
    example = torch.rand(2, 3, *fit.input_size, generator=torch.Generator().manual_seed(0))
    options = intermediate_options(model, fit)
    model = fold_norms(model.eval(), lambda network: network.forward_intermediates(example, **options)[0])  # pyright: ignore
    teacher = Teacher(
        model,
        fit,
        mean=mean or facts.get("mean", IMAGENET_DEFAULT_MEAN),
        std=std or facts.get("std", IMAGENET_DEFAULT_STD),
    )
    with torch.no_grad():
        shape = tuple(teacher(torch.zeros(1, 3, image_size, image_size)).shape[1:])
    if shape != (student_grid[0] * student_grid[1], fit.channels):
        raise UserError(
            f"teacher {name} gives features of shape {shape}, not the {fit.summary}; choose another teacher"
        )
    return teacher


def prune_after(model: nn.Module, fit: Fit) -> None:
    """Drop the blocks behind the chosen stage and the head: they are never run and only take memory."""
    prune = getattr(model, "prune_intermediate_layers", None)
    if prune is not None:
        prune([fit.stage], prune_norm=not fit.last, prune_head=True)
