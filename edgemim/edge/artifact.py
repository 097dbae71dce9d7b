"""The artifact: a folder with model files and the manifest that says how to feed them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from edgemim.config import Config, from_mapping, suggest
from edgemim.edge.images import Preprocessing
from edgemim.edge.segmentation import SegmentationInference
from edgemim.edge.tracking.inference import TrackingInference
from edgemim.errors import UserError
from edgemim.run import write_text

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
METADATA_PREFIX = "edgemim."
_MAX_MANIFEST_BYTES = 16 * 2**20
_METADATA_FIELDS = ("format_version", "name", "task", "input_name", "output_names", "labels")


def _inside(path: str) -> str:
    windows = PureWindowsPath(path)
    if not path or windows.drive or windows.root or ".." in windows.parts or "\\" in path or "\0" in path:
        raise ValueError(f"path {path!r} leaves the artifact folder")
    return path


InsidePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelFile(Config):
    """One model of an artifact in one format and precision."""

    path: InsidePath
    """Path relative to the artifact folder, with forward slashes."""

    sha256: Sha256
    """Hash of that file."""

    format: Literal["onnx", "openvino", "tensorrt"]
    """Which parser reads it; tensorrt is ONNX as TensorRT's parser wants it."""

    precision: str
    """Precision of the weights: fp32, int8, ..."""

    bytes: Annotated[int, Field(gt=0)]
    """Size of that file."""

    companions: dict[InsidePath, Sha256] = Field(default_factory=dict)
    """Further files that it needs (an OpenVINO .bin, ONNX external data), with their hashes."""

    isa: str | None = None
    """CPU instructions that it was made for, where it matters."""

    execution: Literal["f32", "bf16"] = "f32"
    """What OpenVINO computes its float parts in, where the CPU can. The file was judged that way."""

    notes: str = ""
    """What a person should know."""


class Manifest(Config):
    """How to feed an artifact's models, where they come from, and how far they agree with their source."""

    format_version: int = FORMAT_VERSION
    name: str
    task: str = "classification"
    input_name: str = "images"
    input_shape: tuple[int | None, ...]
    """Shape of the input; None where any size will do. Images are [batch, 3, height, width]."""

    inputs: dict[str, tuple[int | None, ...]] = Field(default_factory=dict)
    """Shapes of all images that go in, by name, where there are several: a tracker's template and search. `input_name`
    and `input_shape` are then those of the one that changes from call to call."""

    input_dtype: Literal["float32"] = "float32"
    output_names: Annotated[tuple[str, ...], Field(min_length=1)] = ("logits",)
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits."""

    inference: SegmentationInference | None = None
    """Segmentation: how the model's square is laid over an image."""

    tracking: TrackingInference | None = None
    """Tracking: how crops are taken and maps are read."""

    opset: int
    files: dict[str, ModelFile] = Field(default_factory=dict)
    """Models by key: onnx-fp32, onnx-int8, openvino-int8, ..."""

    parity: dict[str, float | int] = Field(default_factory=dict)
    """Differences between the FP32 file and its source, measured at export."""

    quantization: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """For each quantised file: accuracy, agreement, cosine, speed ratio, number of images, thresholds."""

    source: dict[str, Any] = Field(default_factory=dict)
    """Where it comes from: run folder, checkpoint hash, versions."""

    parameters: Annotated[int, Field(ge=0)] = 0
    """Number of parameters of the source model."""

    gflop: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """10⁹ operations of one run at batch 1 of each FP32 ONNX file: matrix products and convolutions, two a multiply-add."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> Manifest:
        size = self.preprocessing.image_size
        sides = [side for side in self.input_shape[2:] if side is not None]
        square = self.task in ("classification", "segmentation", "features")
        if square and (len(self.input_shape) != 4 or any(side != size for side in sides)):
            raise ValueError(f"input_shape {list(self.input_shape)} does not fit preprocessing.image_size {size}")
        if self.inference is not None:
            self.inference.fits(size)
        self._check_inputs()
        return self

    def _check_inputs(self) -> None:
        if self.inputs and self.inputs.get(self.input_name) != self.input_shape:
            raise ValueError(f"inputs.{self.input_name} is not input_shape {list(self.input_shape)}")
        if (self.tracking is None) != (self.task != "tracking"):
            raise ValueError(f"task '{self.task}' does not go with tracking: it is for trackers, which need it")
        if self.tracking is not None:
            size = self.preprocessing.image_size
            self.tracking.fits(size, self.inputs, self.output_names, tuple(self.files))


class Artifact:
    """An opened artifact: `folder` and `manifest`; `file(key)` is a checked path."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> Artifact:
        """Open a folder and check every file that its manifest names: inside the folder, of the size and hash given.

        With `verify=False` hashes are not computed; paths and sizes are checked all the same.
        Raises UserError that names what disagrees.
        """
        folder = Path(folder)
        artifact = cls(folder, _read_manifest(folder))
        for key in artifact.manifest.files:
            artifact._check(key, hashes=verify)
        return artifact

    def file(self, key: str = "onnx-fp32") -> Path:
        """Path of one model file. Raises UserError if the manifest has no such key."""
        return _resolve(self.folder, self.entry(key).path)

    def entry(self, key: str = "onnx-fp32") -> ModelFile:
        """The manifest's entry of one model file. Raises UserError if there is none."""
        known = self.manifest.files
        if key not in known:
            raise UserError(
                f"artifact {self.folder} has no model '{key}'{suggest(key, known)}; it has {', '.join(known) or 'none'}"
            )
        return known[key]

    def size_bytes(self, key: str) -> int:
        """Bytes of a model file and its companions."""
        entry = self.entry(key)
        return entry.bytes + sum(_resolve(self.folder, name).stat().st_size for name in entry.companions)

    def save_manifest(self) -> None:
        """Write manifest.json so that a reader sees the old one or the new one. Raises UserError on a full disk."""
        write_text(self.folder / MANIFEST_NAME, json.dumps(self.manifest.model_dump(mode="json"), indent=2) + "\n")

    def _check(self, key: str, *, hashes: bool) -> None:
        entry = self.entry(key)
        path = _resolve(self.folder, entry.path)
        if path.stat().st_size != entry.bytes:
            raise UserError(f"{path} has {path.stat().st_size} bytes, the manifest says {entry.bytes}; export it again")
        for name, expected in {entry.path: entry.sha256, **entry.companions}.items():
            path = _resolve(self.folder, name)
            if hashes and (found := sha256_of(path)) != expected:
                raise UserError(
                    f"{path} is not the file that was exported: its sha256 is {found[:12]}…, the manifest says "
                    f"{expected[:12]}…; copy the artifact again or export it again"
                )


def create(folder: str | Path, manifest: Manifest) -> Artifact:
    """Write a manifest into a folder (made if need be) whose model files are already there; check all of them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    artifact = Artifact(folder, manifest)
    for key in manifest.files:
        artifact._check(key, hashes=True)
    artifact.save_manifest()
    return artifact


def describe_file(
    folder: Path,
    path: str,
    *,
    format: Literal["onnx", "openvino", "tensorrt"],
    precision: str,
    companions: Sequence[str] = (),
    isa: str | None = None,
    execution: Literal["f32", "bf16"] = "f32",
    notes: str = "",
) -> ModelFile:
    """The manifest entry of a model file that lies in `folder`, with its size and hashes."""
    return ModelFile(
        path=path,
        sha256=sha256_of(_resolve(folder, path)),
        format=format,
        precision=precision,
        bytes=_resolve(folder, path).stat().st_size,
        companions={name: sha256_of(_resolve(folder, name)) for name in companions},
        isa=isa,
        execution=execution,
        notes=notes,
    )


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def onnx_metadata(manifest: Manifest) -> dict[str, str]:
    """What an ONNX file needs to stand alone, for its metadata_props: key 'edgemim.X', value JSON.

    Keys: the preprocessing's (image_size, crop_pct, interpolation, mean, std) and format_version, name, task,
    input_name, output_names, labels.
    """
    content = manifest.model_dump(mode="json")
    facts: Mapping[str, Any] = {**content["preprocessing"], **{key: content[key] for key in _METADATA_FIELDS}}
    if manifest.inference is not None:
        facts = {**facts, "inference": content["inference"]}
    if manifest.tracking is not None:
        facts = {**facts, "tracking": content["tracking"], "inputs": content["inputs"]}
    return {METADATA_PREFIX + key: json.dumps(value) for key, value in facts.items()}


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        state = f"has no {MANIFEST_NAME}" if folder.is_dir() else "is not a folder"
        raise UserError(f"{folder} {state}, so it is no artifact; give the folder that `edgemim export` wrote")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, too many for a manifest; export it again")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); export it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping; export it again")
    version = content.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format {version!r}, this edgemim reads {FORMAT_VERSION}; use a fitting edgemim")
    return from_mapping(content, Manifest, where=str(path))


def _resolve(folder: Path, name: str) -> Path:
    """The path of a file in the folder. Raises UserError if it is missing or a link leads outside."""
    path = folder / PurePosixPath(name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} leads outside the artifact folder, to {path.resolve()}; refused")
    if not path.is_file():
        raise UserError(f"{path} is missing, though the manifest names it; copy the whole artifact folder")
    return path
