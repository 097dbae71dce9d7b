"""Networks of timm by name, untrained, as artifacts: what a benchmark sets beside one's own model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.data.config import resolve_data_config
from timm.utils.model import reparameterize_model
from torch import nn

from edgemim.config import suggest
from edgemim.edge.artifact import Artifact, Manifest, create, describe_file, onnx_metadata
from edgemim.edge.images import Preprocessing
from edgemim.errors import ModelRefused, UserError
from edgemim.export.arithmetic import gflop_of
from edgemim.export.onnx import DEFAULT_OPSET, export_onnx, first_line
from edgemim.export.staging import check_free, staged

SOURCE_KEY = "timm"
"""Key of a manifest's `source` under which the network's name stands."""


def check_names(names: Sequence[str]) -> None:
    """Raises UserError that names the closest network where timm has none of that name."""
    known = timm.list_models()
    for name in names:
        if name.partition(".")[0] not in known:
            raise UserError(
                f"timm {timm.__version__} has no network '{name}'{suggest(name, known)}; timm.list_models() lists them"
            )


def build_peer(name: str) -> nn.Module:
    """The network with seeded weights, in evaluation mode, branches merged where it can (FastViT, MobileOne, RepViT).

    Latency does not depend on the weights; nothing is downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return reparameterize_model(timm.create_model(name, pretrained=False).eval())


def peer_artifact(name: str, folder: Path) -> Artifact:
    """The network as an artifact with one file, onnx-fp32; one that this timm and torch wrote there before is taken as it is.

    Raises UserError if the folder holds something else, ModelRefused if the network cannot be exported.
    """
    source = {SOURCE_KEY: name, "timm_version": timm.__version__, "torch_version": torch.__version__}
    if (folder / "manifest.json").is_file():
        artifact = Artifact.open(folder)
        if artifact.manifest.source == source and artifact.manifest.opset == DEFAULT_OPSET:
            return artifact
        if SOURCE_KEY not in artifact.manifest.source:
            raise UserError(f"{folder} holds another artifact, where the peer {name} belongs; give another --out")
    check_free(folder, overwrite=True)
    try:
        model = build_peer(name)
    except Exception as error:  # a network that needs weights, another package or other arguments
        raise ModelRefused(f"timm {timm.__version__} cannot build {name}: {first_line(error)}") from error
    manifest = _manifest(name, model, source)
    with staged(folder) as new:
        export_onnx(
            model,
            torch.zeros(2, *(int(side or 0) for side in manifest.input_shape[1:])),
            new / "model.onnx",
            metadata=onnx_metadata(manifest),
        )
        files = {"onnx-fp32": describe_file(new, "model.onnx", format="onnx", precision="fp32")}
        create(new, manifest.model_copy(update={"files": files, "gflop": gflop_of(new, files)}))
    return Artifact.open(folder)


def _manifest(name: str, model: nn.Module, source: dict[str, str]) -> Manifest:
    settings = resolve_data_config(model=model)
    channels, height, width = settings["input_size"]
    if channels != 3 or height != width:
        raise ModelRefused(f"{name} takes inputs of {channels}×{height}×{width}; peers are for square colour images")
    preprocessing = Preprocessing(image_size=height, mean=settings["mean"], std=settings["std"])
    return Manifest(
        name=name,
        input_shape=(None, 3, height, width),
        preprocessing=preprocessing,
        opset=DEFAULT_OPSET,
        source=dict(source),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
