"""A tracker becomes model files, one graph or two, and is compared with PyTorch on real pairs of crops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemim.edge.artifact import Artifact, ModelFile, describe_file
from edgemim.edge.runtime import Session, open_session
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX
from edgemim.errors import UserError
from edgemim.export.onnx import export_onnx
from edgemim.export.openvino import convert
from edgemim.export.parity import Parity, check_weights, compare
from edgemim.export.tracking_graphs import CACHE_NAMES, MAP_NAMES, JointGraph, SearchGraph, TemplateGraph
from edgemim.models.one_stream import OneStreamTracker
from edgemim.tasks.tracking import TrackingTask

_SWAPPED_SHARE = 0.03
"""Of pairs in which elimination may drop another token than PyTorch's: two that are looked at alike to the last bit."""


@dataclass(frozen=True)
class Graph:
    """One file of an artifact: a module, examples of what goes in by name, and the names of what comes out."""

    suffix: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def graphs_of(model: OneStreamTracker, *, elimination: bool) -> list[Graph]:
    """The graphs of a tracker; of the cached form the template's first."""
    generator = torch.Generator().manual_seed(0)
    size = model.size
    crops = {
        name: torch.randn(1, 3, side, side, generator=generator)
        for name, side in (("template", size.template_size), ("search", size.search_size))
    }
    if size.attention == "joint":
        return [Graph("", JointGraph(model, elimination=elimination and size.eliminates).eval(), crops, MAP_NAMES)]
    template = {"template": crops["template"]}
    blocks = (size.encoder.depth, size.encoder.depth, len(set(size.matching_blocks)))
    caches = {
        name: torch.zeros(count, size.template_grid**2, size.encoder.width)
        for name, count in zip(CACHE_NAMES, blocks, strict=True)
        if count
    }
    return [
        Graph(TEMPLATE_SUFFIX, TemplateGraph(model).eval(), template, tuple(caches)),
        Graph("", SearchGraph(model).eval(), {"search": crops["search"], **caches}, MAP_NAMES),
    ]


def write_tracker(
    folder: Path,
    task: TrackingTask,
    *,
    opset: int,
    elimination: bool,
    openvino: bool,
    metadata: Mapping[str, str],
) -> tuple[dict[str, ModelFile], dict[str, float | int]]:
    """Write the model files; returns their manifest entries, and how many weights were found bit for bit.

    Raises:
        ModelRefused: if a graph cannot be exported or converted.
        GateRefused: if a weight moved.
    """
    files: dict[str, ModelFile] = {}
    identical, total = 0, 0
    for graph in graphs_of(task.model.cpu(), elimination=elimination):
        path = folder / f"model{graph.suffix}.onnx"
        export_onnx(
            graph.module,
            tuple(graph.inputs.values()),
            path,
            input_name=tuple(graph.inputs),
            output_names=graph.outputs,
            opset=opset,
            dynamic_batch=False,
            metadata=metadata,
        )
        files[f"onnx-fp32{graph.suffix}"] = describe_file(folder, path.name, format="onnx", precision="fp32")
        if openvino:
            name = f"openvino-fp32{graph.suffix}"
            convert(path, folder / f"{name}.xml")
            files[name] = describe_file(
                folder, f"{name}.xml", format="openvino", precision="fp32", companions=[f"{name}.bin"]
            )
        found, all_weights = check_weights(graph.module, path)
        identical, total = identical + found, total + all_weights
    return files, {"weights_identical": identical, "weights": total}


class PairSession:
    """A tracker's graphs as one session: {"template", "search"} -> {"score", "offset", "size"}; batch of one."""

    def __init__(self, session: Session, template: Session | None) -> None:
        self.runtime, self.precision, self.threads = session.runtime, session.precision, session.threads
        self.session, self._template = session, template

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one pair of normalised crops."""
        return self.session.run(self.searching(inputs))

    def searching(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the graph of every frame takes: of the cached form, with the template's keys and values."""
        if self._template is None:
            return inputs
        return {"search": inputs["search"], **self._template.run({"template": inputs["template"]})}


def open_tracker(
    artifact: Artifact, key: str = "onnx-fp32", *, runtime: str | None = None, threads: int = 0
) -> PairSession:
    """Open the graph or graphs of one format and precision. Raises as `open_session` does."""
    options = {"runtime": runtime, "threads": threads}
    session = open_session(artifact, key, **options)
    cached = key + TEMPLATE_SUFFIX in artifact.manifest.files
    return PairSession(session, open_session(artifact, key + TEMPLATE_SUFFIX, **options) if cached else None)


def measure_tracker_parity(
    task: TrackingTask, sessions: Mapping[str, Session], *, pairs: int, elimination: bool
) -> dict[str, Parity]:
    """Compare sessions with PyTorch on held-out pairs, all three maps of each.

    Where tokens are eliminated, rounding may choose another of two that are looked at alike; so 3 % of the pairs, the
    farthest off, are not counted there. Raises UserError without pairs.
    """
    model = task.model.cpu().float().eval()
    rows: dict[str, list[Parity]] = {name: [] for name in sessions}
    expect = _reference(model, elimination)
    for inputs, pair in task.evaluation_pairs(pairs):
        expected = expect(inputs, torch.from_numpy(pair.template_box)[None])
        for name, session in sessions.items():
            found = session.run(inputs)
            rows[name].append(_worst([compare(expected[key], found[key]) for key in MAP_NAMES], 1))
    if not next(iter(rows.values())):
        raise UserError("there are no held-out pairs to compare on; give --data DIR with pictures")
    spared = math.ceil(_SWAPPED_SHARE * pairs) if elimination and model.size.eliminates and pairs > 1 else 0
    counted = {name: sorted(found, key=_error)[: len(found) - spared] for name, found in rows.items()}
    return {name: _worst(found, len(found)) for name, found in counted.items()}


def _reference(
    model: OneStreamTracker, elimination: bool
) -> Callable[[dict[str, np.ndarray], Tensor], dict[str, np.ndarray]]:
    def run(inputs: dict[str, np.ndarray], box: Tensor) -> dict[str, np.ndarray]:
        crops = (torch.from_numpy(inputs[name]) for name in ("template", "search"))
        with torch.inference_mode():
            maps = model(*crops, keep_rate=None if elimination else 1.0, template_box=box)
        return {name: value.numpy() for name, value in maps._asdict().items()}

    return run


def _error(parity: Parity) -> float:
    """Not a number counts as the largest."""
    return parity.relative_error if math.isfinite(parity.relative_error) else math.inf


def _worst(parities: list[Parity], images: int) -> Parity:
    """The worst of each figure; what is not a number stays one."""
    return Parity(
        images=images,
        max_abs_error=float(np.max([parity.max_abs_error for parity in parities])),
        relative_error=float(np.max([parity.relative_error for parity in parities])),
        cosine=float(np.min([parity.cosine for parity in parities])),
    )
