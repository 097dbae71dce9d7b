"""`edgemim export`: a fine-tuned run becomes an artifact whose answers were compared with PyTorch's."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pydantic
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from edgemim.commands.export_tensorrt import show_plan, write_tensorrt
from edgemim.commands.quantize import QuantizeConfig, quantize
from edgemim.edge.artifact import (
    METADATA_PREFIX,
    Artifact,
    Manifest,
    ModelFile,
    create,
    describe_file,
    onnx_metadata,
    sha256_of,
)
from edgemim.edge.runtime import Session, open_session
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX
from edgemim.errors import EdgemimError, ModelRefused, UserError
from edgemim.export.arithmetic import gflop_of
from edgemim.export.attention_form import split_attentions
from edgemim.export.onnx import DEFAULT_OPSET, export_onnx
from edgemim.export.openvino import convert, missing_packages, require_packages
from edgemim.export.parity import DEFAULT_TOLERANCE, Parity, check_weights, figures_of, measure_parity, refuse_if_apart
from edgemim.export.quantize import Int8Config
from edgemim.export.reduced import REDUCED_TOLERANCES, precision_of, require_bf16, write_bf16, write_fp16
from edgemim.export.staging import check_free, staged
from edgemim.export.tracking import measure_tracker_parity, open_tracker, write_tracker
from edgemim.models.weights import MODEL_FILE
from edgemim.run import RunRecord, find_run, installed_versions
from edgemim.tasks import FeaturesTask, Task, TrackingTask, open_task
from edgemim.tasks.features import NO_INT8


class ExportConfig(Int8Config):
    """Make an artifact of a fine-tuned run: ONNX, compared with PyTorch on real images; with --int8 also quantised.

    Example: edgemim export runs/finetune-... --onnx --int8
    """

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a fine-tuning run; default the newest. Of a pre-training run, or a converted checkpoint, the encoder's
    features are exported: the mean of its patch tokens, as `edgemim probe` takes them."""
    onnx: bool = True
    """Write ONNX; every other format is made from it, so it cannot be left out."""
    openvino: bool = False
    """Write OpenVINO's own format too (and with --int8, its INT8 too, or fail where it is not installed)."""
    fp16: bool = False
    """Write float16 files too: ONNX for GPUs, and with --openvino its format at half the size (CPUs compute in float32)."""
    bf16: bool = False
    """Name OpenVINO's FP32 file a second time, computed in bfloat16; for CPUs with its instructions, and made on one."""
    tensorrt: bool = False
    """Write files for TensorRT too (float16, INT8 as its parser wants it) with the lines that build them; checked by
    tensorrt-rtx, which needs no GPU. They lie in ARTIFACT/tensorrt, with trt_plan.json."""
    int8: bool = False
    """Then quantise, as `edgemim quantize` does; the options from --targets to --force belong to it."""
    out: Path | None = None
    """Folder of the artifact; default RUN/artifact."""
    overwrite: bool = False
    """Replace the artifact that is there, once the new one has passed its gate."""
    opset: int = pydantic.Field(default=DEFAULT_OPSET, ge=18, le=23)
    """Version of ONNX's operators."""
    fixed_batch: int | None = pydantic.Field(default=None, ge=1)
    """Take exactly so many images at once; default any number."""
    image_size: int | None = pydantic.Field(default=None, ge=1)
    """Segmentation: side of the square that the model takes, pixels; default as trained. Positions are interpolated."""
    elimination: bool = True
    """Tracking: keep candidate elimination in the graph, where the tracker was trained with it: a quarter faster."""
    cached: bool = False
    """Tracking: cache the template's tokens of a tracker that was trained jointly. Its answers change (the parity gate
    compares with PyTorch in that form): evaluate it with `edgemim track ARTIFACT --dataset`."""
    parity_images: int = pydantic.Field(default=64, ge=1)
    """Held-out images (pairs, for a tracker) that the exported files are compared with PyTorch on."""
    tolerance: float = pydantic.Field(default=DEFAULT_TOLERANCE, gt=0)
    """Largest difference of an output from PyTorch's, over the largest output (at least 1)."""
    fp16_tolerance: float = pydantic.Field(default=REDUCED_TOLERANCES["fp16"], gt=0)
    """The same for float16 files."""
    bf16_tolerance: float = pydantic.Field(default=REDUCED_TOLERANCES["bf16"], gt=0)
    """The same for what is computed in bfloat16."""


def export_model(config: ExportConfig) -> dict[str, Any]:
    """Export a run; returns what stands in the artifact's run.json under 'results'.

    Raises:
        UserError: bad input, nothing to export, no images to compare on.
        GateRefused: parity out of tolerance (no artifact is left, an older one stays), or INT8 refused (FP32 stays).
        ModelRefused, MissingLibrary: a model or library that does not do. Of --tensorrt they come last: the artifact stays.
    """
    if not config.onnx:
        raise UserError("--no-onnx leaves nothing to export: every other format is made from ONNX; leave the flag out")
    _refuse_idle_options(config)
    if config.openvino:
        require_packages(quantize=config.int8)
    if config.bf16:
        require_bf16(openvino=config.openvino)
    run = find_run(config.run, "finetune")
    out = config.out or run / "artifact"
    check_free(out, overwrite=config.overwrite)
    task = open_task(run, data=config.data, val=config.val)
    _refuse_unfit(config, task)
    trained_size = task.preprocessing.image_size
    if config.image_size is not None:
        task = task.at_size(config.image_size)
    if config.cached and isinstance(task, TrackingTask):
        task = task.as_cached()
    fault: EdgemimError | None = None
    with staged(out) as folder, RunRecord("export", folder, config) as record:
        artifact = _build(folder, run, task, config, trained_size)
        parities = _compare(artifact, _sessions(artifact, task, record), task, config)
        record.results.update(run=str(run.resolve()), parity=dict(artifact.manifest.parity))
        record.results["files"] = {key: entry.bytes for key, entry in artifact.manifest.files.items()}
        if config.tensorrt:
            record.results["tensorrt"], fault = write_tensorrt(artifact, task, config.calibration, config.parity_images)
    _show(Artifact(out, artifact.manifest), parities)
    if config.tensorrt:
        show_plan(record.results["tensorrt"], out)
    if config.int8:
        quantized = quantize(_quantize_config(config, out, run))
        record.results["quantization"] = quantized["quantization"]
    else:
        following = "track VIDEO --artifact" if isinstance(task, TrackingTask) else "benchmark"
        print(f"artifact in {out}; next: edgemim {following} {out}")
    if fault is not None:
        raise fault  # the artifact is complete; what TensorRT lacks is said last, with its exit code
    return record.results


def _refuse_idle_options(config: ExportConfig) -> None:
    """An option that would be ignored in silence is a mistake. Raises UserError."""
    fields = {name: field.default for name, field in Int8Config.model_fields.items() if name not in ("data", "val")}
    idle = [name for name, default in fields.items() if getattr(config, name) != default]
    idle = [name for name in idle if not (config.tensorrt and name == "calibration")]
    if idle and not config.int8:
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise UserError(f"{flags} would have no effect without --int8; add --int8 or leave it out")


def _quantize_config(config: ExportConfig, out: Path, run: Path) -> QuantizeConfig:
    shared = {name: getattr(config, name) for name in Int8Config.model_fields}
    if config.openvino and not config.targets:
        shared["targets"] = ("onnx-int8", "openvino-int8")
    return QuantizeConfig(**shared, artifact=out, run=run)


def _refuse_unfit(config: ExportConfig, task: Task) -> None:
    """Options that the task has no use for. Raises UserError."""
    if isinstance(task, FeaturesTask) and (config.int8 or config.tensorrt):
        flag = "int8" if config.int8 else "tensorrt"
        raise UserError(f"--{flag}: {NO_INT8.format(run=task.run)}")
    if isinstance(task, TrackingTask):
        if config.fixed_batch not in (None, 1):
            raise UserError("a tracker takes one pair at a time; leave --fixed-batch out")
        if config.cached and task.model.size.attention == "cached":
            raise UserError("the tracker was trained with its template cached; leave --cached out")
    elif config.cached or not config.elimination:
        flag = "cached" if config.cached else "no-elimination"
        raise UserError(f"a model for {task.task_name} has no template and eliminates nothing; leave --{flag} out")


def _build(folder: Path, run: Path, task: Task, config: ExportConfig, trained_size: int) -> Artifact:
    """Write the model files and their manifest."""
    tracking = isinstance(task, TrackingTask)
    batch = 1 if tracking else config.fixed_batch
    example = task.example_input(batch or 2)
    manifest = Manifest(
        name=run.resolve().name,
        task=task.task_name,
        input_name=task.input_name,
        input_shape=(batch, *example.shape[1:]),
        output_names=task.output_names,
        preprocessing=task.preprocessing,
        labels=task.labels,
        opset=config.opset,
        source=_source(run, trained_size, task.preprocessing.image_size),
        parameters=sum(parameter.numel() for parameter in task.model.parameters()),
        **task.manifest_facts(),
    )
    with Console(stderr=True).status("exporting to ONNX"):
        if tracking:
            options = {"opset": config.opset, "elimination": config.elimination, "openvino": config.openvino}
            files, weights = write_tracker(folder, task, **options, metadata=_metadata(manifest))
        else:
            files, weights = _write(folder, task, manifest, config)
        if config.fp16:
            files |= write_fp16(folder, files, openvino=config.openvino)
        if config.bf16:
            files |= write_bf16(files)
    gflop = gflop_of(folder, files)
    return create(folder, manifest.model_copy(update={"files": files, "parity": weights, "gflop": gflop}))


def _write(
    folder: Path, task: Task, manifest: Manifest, config: ExportConfig
) -> tuple[dict[str, ModelFile], dict[str, float | int]]:
    """One graph from images to outputs, and how many weights were found in it bit for bit."""
    module, path = split_attentions(task.export_module().cpu()), folder / "model.onnx"
    export_onnx(
        module,
        task.example_input(config.fixed_batch or 2),
        path,
        input_name=task.input_name,
        output_names=task.output_names,
        opset=config.opset,
        dynamic_batch=config.fixed_batch is None,
        metadata=_metadata(manifest),
    )
    files: dict[str, ModelFile] = {"onnx-fp32": describe_file(folder, path.name, format="onnx", precision="fp32")}
    if config.openvino:
        convert(path, folder / "openvino-fp32.xml")
        files["openvino-fp32"] = describe_file(
            folder, "openvino-fp32.xml", format="openvino", precision="fp32", companions=["openvino-fp32.bin"]
        )
    return files, _weights(module, path)


def _weights(module: nn.Module, path: Path) -> dict[str, float | int]:
    found, total = check_weights(module, path)
    return {"weights_identical": found, "weights": total}


def _source(run: Path, trained_size: int, image_size: int) -> dict[str, Any]:
    positions = {"positions": f"interpolated from {trained_size} to {image_size} pixels"}
    return {
        "trained_image_size": trained_size,
        **(positions if trained_size != image_size else {}),
        "run": str(run.resolve()),
        "checkpoint_sha256": sha256_of(run / "model" / MODEL_FILE),
        "exporter": "torch.onnx, dynamo",
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": installed_versions(),
    }


def _metadata(manifest: Manifest) -> dict[str, str]:
    """What the file says about itself. No path and no date: the same run gives the same file."""
    facts = {
        "opset": manifest.opset,
        "checkpoint_sha256": manifest.source["checkpoint_sha256"],
        "versions": manifest.source["versions"],
        "parameters": manifest.parameters,
    }
    return onnx_metadata(manifest) | {METADATA_PREFIX + key: json.dumps(value) for key, value in facts.items()}


def _compare(artifact: Artifact, sessions: dict[str, Session], task: Task, config: ExportConfig) -> dict[str, Parity]:
    """The gate: compare each session with PyTorch, record the figures. Raises GateRefused."""
    manifest = artifact.manifest
    if isinstance(task, TrackingTask):
        parities = measure_tracker_parity(task, sessions, pairs=config.parity_images, elimination=config.elimination)
    else:
        parities = measure_parity(
            task.export_module().cpu(),
            sessions,
            (images for images, _ in task.evaluation_batches(config.parity_images)),
            input_name=manifest.input_name,
            output_name=manifest.output_names[0],
            fixed=config.fixed_batch,
        )
    tolerances = {"fp32": config.tolerance, "fp16": config.fp16_tolerance, "bf16": config.bf16_tolerance}
    figures: dict[str, float | int] = {}
    for precision, tolerance in tolerances.items():
        found = {name: parity for name, parity in parities.items() if precision_of(name) == precision}
        refuse_if_apart(found, tolerance)
        figures |= figures_of(found, tolerance, prefix="" if precision == "fp32" else f"{precision}_")
    artifact.manifest = manifest.model_copy(update={"parity": {**manifest.parity, **figures}})
    artifact.save_manifest()
    return parities


def _sessions(artifact: Artifact, task: Task, record: RunRecord) -> dict[str, Session]:
    def open_it(key: str = "onnx-fp32", runtime: str | None = None) -> Session:
        opener = open_tracker if isinstance(task, TrackingTask) else open_session
        return opener(artifact, key, runtime=runtime)

    sessions = {"onnxruntime": open_it()}
    if not missing_packages(quantize=False):
        try:
            sessions["openvino"] = open_it(runtime="openvino")
        except ModelRefused as error:
            record.warn(f"{error}; the artifact is for ONNX Runtime alone")
    if "openvino-fp32" in artifact.manifest.files:
        sessions["openvino_ir"] = open_it("openvino-fp32")
    reduced = [
        key for key in artifact.manifest.files if precision_of(key) != "fp32" and not key.endswith(TEMPLATE_SUFFIX)
    ]
    return sessions | {key: open_it(key) for key in reduced}


def _show(artifact: Artifact, parities: dict[str, Parity]) -> None:
    table = Table(title=f"parity with PyTorch on {next(iter(parities.values())).images} images")
    for column in ("runtime", "largest error", "over scale", "least cosine"):
        table.add_column(column, justify="left" if column == "runtime" else "right")
    for runtime, parity in parities.items():
        table.add_row(runtime, f"{parity.max_abs_error:.2g}", f"{parity.relative_error:.2g}", f"{parity.cosine:.7f}")
    console = Console()
    console.print(table)
    figures = artifact.manifest.parity
    print(f"{figures['weights_identical']} of {figures['weights']} weights found in the file bit for bit")
    for key in artifact.manifest.files:
        print(f"{key}: {artifact.file(key)}, {artifact.size_bytes(key) / 2**20:.2f} MiB")
