"""How far an exported file is from the PyTorch module that it was made of: outputs on real images, and every weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgemim.edge.runtime import Session
from edgemim.errors import GateRefused, UserError
from edgemim.tasks.comparison import cosines

DEFAULT_TOLERANCE = 1e-4
"""Measured on ViTs: about 1e-6 with ONNX Runtime, so a hundred times that means another function, not rounding."""


@dataclass(frozen=True)
class Parity:
    """Differences of one runtime's outputs from PyTorch's.

    Attributes:
        images: number of images compared.
        max_abs_error: largest absolute difference of any output value.
        relative_error: that difference over the largest absolute output of PyTorch, which counts as at least 1.
            This is what the gate looks at: small outputs are judged absolutely, large ones by their scale.
        cosine: smallest cosine, over the images, of both outputs.
    """

    images: int
    max_abs_error: float
    relative_error: float
    cosine: float


def run_batched(session: Session, input_name: str, images: np.ndarray, fixed: int | None) -> dict[str, np.ndarray]:
    """Run images [b, ...] in one batch or, where the model takes `fixed` images only, in several, the last filled up."""
    if fixed is None:
        return session.run({input_name: images})
    parts = [session.run({input_name: chunk}) for chunk in chunks(images, fixed)]
    return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in parts[0]}


def chunks(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Pieces of exactly `size` images; the last one repeats its last image to be full."""
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        filling = np.repeat(chunk[-1:], size - len(chunk), axis=0)
        yield np.ascontiguousarray(np.concatenate([chunk, filling]))


def measure_parity(
    module: nn.Module,
    sessions: Mapping[str, Session],
    batches: Iterable[np.ndarray],
    *,
    input_name: str = "images",
    output_name: str = "logits",
    fixed: int | None = None,
) -> dict[str, Parity]:
    """Compare sessions with a module (float32, evaluation mode, CPU) on normalised images [b, 3, s, s].

    The first image also runs alone, so that a batch size baked in by mistake is found. Raises UserError without images.
    """
    expected: list[np.ndarray] = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in sessions}
    for images in _first_alone(batches):
        with torch.inference_mode():
            expected.append(module(torch.from_numpy(images)).numpy())
        for name, session in sessions.items():
            found[name].append(run_batched(session, input_name, images, fixed)[output_name])
    if not expected:
        raise UserError("there are no held-out images to compare on; give --data DIR with images")
    reference = np.concatenate(expected)
    return {name: compare(reference, np.concatenate(outputs)) for name, outputs in found.items()}


def _first_alone(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for number, images in enumerate(batches):
        if number == 0 and len(images) > 1:
            yield images[:1]
            images = images[1:]
        yield np.ascontiguousarray(images)


def compare(reference: np.ndarray, other: np.ndarray) -> Parity:
    """The differences of two arrays [images, ...]; not a number anywhere gives not a number."""
    error = float(np.abs(reference - other).max())
    scale = max(1.0, float(np.abs(reference).max()))
    return Parity(len(reference), error, error / scale, float(cosines(reference, other).min()))


def refuse_if_apart(parities: Mapping[str, Parity], tolerance: float) -> None:
    """The gate. Raises GateRefused if any runtime's relative error is over the tolerance or not a number."""
    for runtime, parity in parities.items():
        if not parity.relative_error <= tolerance:
            raise GateRefused(
                f"parity refused: on {runtime} the exported model is off by {parity.relative_error:.2g} from PyTorch "
                f"(largest of {parity.images} images, absolute {parity.max_abs_error:.2g}, cosine {parity.cosine:.6f}), "
                f"the tolerance is {tolerance:.2g}; no artifact was written"
            )


def figures_of(parities: Mapping[str, Parity], tolerance: float, *, prefix: str = "") -> dict[str, float | int]:
    """What a manifest keeps: images, tolerance, the worst of each figure, and each runtime's own; {} of no parities.

    A not-a-number stays one.
    """
    if not parities:
        return {}
    found = list(parities.values())
    figures: dict[str, float | int] = {
        "images": found[0].images,
        "tolerance": tolerance,
        "max_abs_error": float(np.max([parity.max_abs_error for parity in found])),
        "relative_error": float(np.max([parity.relative_error for parity in found])),
        "cosine": float(np.min([parity.cosine for parity in found])),
    }
    figures = {prefix + name: value for name, value in figures.items()}
    for runtime, parity in parities.items():
        figures |= {f"{runtime}_max_abs_error": parity.max_abs_error, f"{runtime}_cosine": parity.cosine}
    return figures


def check_weights(module: nn.Module, path: Path) -> tuple[int, int]:
    """Look up every parameter of the module in an ONNX file, bit for bit; returns (found, all).

    A single weight that moved can drown in the rounding of the outputs; here it cannot. A parameter counts as found if
    a tensor of the file holds its values, as it is or transposed. One that the exporter folded into others is not
    found and not refused: the outputs speak for it, as they do for one of fewer than three values.

    Raises:
        GateRefused: if a tensor of the file shares more than half of its values with a parameter, but not all.
    """
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    floats = {name: array for name, array in tensors.items() if array.dtype == np.float32 and array.ndim}
    known = {array.tobytes() for array in floats.values()}
    parameters = {name: p.detach().float().cpu().numpy() for name, p in module.named_parameters()}
    missing = {n: p for n, p in parameters.items() if not known & {form.tobytes() for form in _forms(p)}}
    used = {form.tobytes() for p in parameters.values() for form in _forms(p)}
    strangers = {name: array for name, array in floats.items() if array.tobytes() not in used}
    for name, parameter in missing.items():
        _refuse_if_moved(name, parameter, strangers, path)
    return len(parameters) - len(missing), len(parameters)


def _forms(parameter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(parameter), np.ascontiguousarray(parameter.T)


def _refuse_if_moved(name: str, parameter: np.ndarray, strangers: Mapping[str, np.ndarray], path: Path) -> None:
    for array in strangers.values():
        for form in _forms(parameter):
            if form.shape != array.shape or not 0.5 < (form == array).mean() < 1:
                continue
            moved, error = int((form != array).sum()), float(np.abs(form - array).max())
            raise GateRefused(
                f"parity refused: {moved} of {array.size} values of weight {name} in {path.name} differ from "
                f"PyTorch's, by up to {error:.2g}; no artifact was written"
            )
