"""What an artifact's files are compared with: the same network in PyTorch, of its run or of timm, graph by graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from edgemim.edge.artifact import Artifact
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX
from edgemim.errors import ModelRefused
from edgemim.export.onnx import first_line
from edgemim.export.timm_peer import SOURCE_KEY, build_peer
from edgemim.export.torch_session import TorchSession
from edgemim.models.one_stream import OneStreamTracker
from edgemim.tasks import TrackingTask, open_task

Inputs = dict[str, np.ndarray]


def open_baseline(
    artifact: Artifact, run: Path | None, key: str, *, batch: int, threads: int, compiled: bool
) -> tuple[TorchSession, Inputs]:
    """Open the network in PyTorch, and noise to time it with; compiled, it has made its first run.

    Args:
        artifact: whose network it is.
        run: the fine-tuned run that it comes from; None for a peer of timm.
        key: fp32, or fp32-template for a cached tracker's other graph.
        batch: images at once.
        threads: CPU threads.
        compiled: by torch.compile, else eager.

    Raises:
        UserError: if the run holds no such model.
        MissingLibrary: if there is no compiler.
        ModelRefused: if torch cannot compile the network.
    """
    torch.set_num_threads(threads)  # also for the kernels that inductor writes now
    module, inputs, outputs = _network(artifact, run, key, batch)
    shapes = {name: (None, *value.shape[1:]) for name, value in inputs.items()}
    session = TorchSession(module, shapes, outputs, threads, compiled=compiled)
    if compiled:
        try:
            session.run(inputs)
        except Exception as error:  # of dynamo, inductor or the C++ compiler: no common base class
            raise ModelRefused(f"torch {torch.__version__} cannot compile the model: {first_line(error)}") from error
    return session, inputs


def _network(artifact: Artifact, run: Path | None, key: str, batch: int) -> tuple[nn.Module, Inputs, tuple[str, ...]]:
    """A module, its inputs in order, and the names of its outputs."""
    manifest = artifact.manifest
    size = manifest.preprocessing.image_size
    if run is None:
        module = build_peer(str(manifest.source[SOURCE_KEY]))
    else:
        task = open_task(run)
        if isinstance(task, TrackingTask):
            if manifest.tracking is not None and manifest.tracking.form == "cached":
                task = task.as_cached()
            return _tracker(task, key, eliminates=_eliminates(artifact))
        module = (task if task.preprocessing.image_size == size else task.at_size(size)).export_module()
    shape = (batch, *(side or size for side in manifest.input_shape[1:]))
    return module, {manifest.input_name: _noise(*shape)}, manifest.output_names


def _tracker(task: TrackingTask, key: str, *, eliminates: bool) -> tuple[nn.Module, Inputs, tuple[str, ...]]:
    model, facts = task.model.eval(), task.inference
    template, search = (_noise(1, 3, side, side) for side in (facts.template_size, facts.search_size))
    maps = ("score", "offset", "size")
    if model.size.attention == "joint":
        return _Joint(model, eliminates=eliminates), {"template": template, "search": search}, maps
    with torch.inference_mode():
        cache = {f"cache_{i}": part.numpy() for i, part in enumerate(model.encode_template(torch.from_numpy(template)))}
    if key.endswith(TEMPLATE_SUFFIX):
        return _Template(model), {"template": template}, tuple(cache)
    return _Search(model), {"search": search, **cache}, maps


class _Joint(nn.Module):
    def __init__(self, model: OneStreamTracker, *, eliminates: bool) -> None:
        super().__init__()
        self.model, self.keep_rate = model, None if eliminates else 1.0

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(template, search, keep_rate=self.keep_rate))


class _Template(nn.Module):
    def __init__(self, model: OneStreamTracker) -> None:
        super().__init__()
        self.model = model

    def forward(self, template: Tensor) -> tuple[Tensor, ...]:
        return self.model.encode_template(template)


class _Search(nn.Module):
    def __init__(self, model: OneStreamTracker) -> None:
        super().__init__()
        self.model = model

    def forward(self, search: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.search_with(search, *cache))


def _eliminates(artifact: Artifact) -> bool:
    """Whether the exported graph drops search tokens where the tracker does: what the export was told, by default so."""
    path = artifact.folder / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except (OSError, yaml.YAMLError):
        settings = {}
    return bool(settings.get("elimination", True)) if isinstance(settings, dict) else True


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
