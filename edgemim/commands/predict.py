"""`edgemim predict`: classes of images or of their pixels, or features; by an artifact without torch, or by a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from edgemim.commands.predict_features import write_features
from edgemim.config import Config
from edgemim.edge.artifact import MANIFEST_NAME, Artifact, Manifest
from edgemim.edge.images import IMAGE_SUFFIXES, MAX_PIXELS, ImageError, load_image
from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime import Session, open_session
from edgemim.edge.runtime.outputs import output_of
from edgemim.errors import UserError
from edgemim.run import RunRecord, find_run, prepare_folder, write_text

_SHOWN = 40
_DECODED_AHEAD = 16


class PredictConfig(Config):
    """Classify images, or their pixels, or take their features, with an artifact or a run.

    An image that cannot be read is reported and left out.

    Example: edgemim predict runs/finetune-.../artifact photos/ --top 3
    """

    artifact: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder that `edgemim export` wrote, or that of a run (which needs torch)."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Image files, or folders that are searched for them."""
    file: str = "onnx-fp32"
    """Which model of the artifact: onnx-fp32, onnx-int8, openvino-int8, ..."""
    runtime: str | None = None
    """onnxruntime or openvino; default the one that the file is made for."""
    threads: int = pydantic.Field(0, ge=0)
    """CPU threads; 0 is all usable CPUs."""
    batch_size: int = pydantic.Field(1, ge=1)
    """Images at once. A larger batch is hardly faster on a CPU, and a dynamically quantised model (onnx-int8) takes one
    range for a whole batch, so that its answers then depend a little on the neighbours."""
    top: int = pydantic.Field(5, ge=1)
    """How many classes to name for each image."""
    mode: Literal["slide", "whole"] | None = None
    """Segmentation: windows over the image, or the whole squeezed into one; default as the model was trained."""
    max_pixels: int = pydantic.Field(MAX_PIXELS, ge=1)
    """Larger images are left out."""
    out: Path | None = None
    """Where predictions.json, predictions.csv (of pixels: masks/ and overlays/; of features: features.npy and
    the images of its rows in features.csv) and run.json go; default ARTIFACT/predict."""
    overwrite: bool = False
    """Empty the folder given by --out first."""


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Classify images; returns [{image, predictions: [{label, index, probability, logit}]}], or [{image, features}].

    Raises UserError.
    """
    folder = find_run(config.artifact, "export")
    artifact = None if _is_run(folder) else Artifact.open(folder)
    manifest = _describe(folder) if artifact is None else artifact.manifest
    if manifest.task not in ("classification", "segmentation", "features"):
        hint = f"; for a video: edgemim track VIDEO --artifact {folder}" if manifest.task == "tracking" else ""
        raise UserError(
            f"{folder} is for {manifest.task}; predict handles classification, segmentation and features{hint}"
        )
    if config.mode is not None and manifest.inference is None:
        raise UserError(f"--mode is for segmentation, {folder} is for {manifest.task}; leave it out")
    paths = find_images(config.images)
    if artifact is None:
        session = _open_run(folder, config)
    else:
        session = open_session(artifact, config.file, runtime=config.runtime, threads=config.threads)
    out = config.out or folder / "predict"
    prepare_folder(out, overwrite=config.overwrite, resume=config.out is None)
    following = f"export {folder} --onnx" if artifact is None else f"benchmark {folder}"
    if manifest.task == "segmentation":
        found = _segment(config, session, manifest, paths, out)
        print(f"masks, overlays and legend.png in {out}; next: edgemim {following}")
        return found
    answer = _take_features if manifest.task == "features" else _classify
    with RunRecord("predict", out, config) as record:
        found = []
        skipped: list[ImageError] = []
        # A file made for a fixed batch takes exactly so many images.
        fixed = manifest.input_shape[0]
        for names, batch in track(
            list_batches(paths, manifest, fixed or config.batch_size, config.max_pixels, skipped),
            total=-(-len(paths) // (fixed or config.batch_size)),
            description="predicting",
            transient=True,
        ):
            found += answer(session, manifest, names, batch, fixed, config.top)
        record.results.update(images=len(found), skipped=[[error.name, error.reason] for error in skipped])
        _report_skipped(record, skipped)
        if not found:
            raise UserError(f"none of the {len(paths)} images could be read; the first: {skipped[0]}")
        written = (write_features if manifest.task == "features" else _write_classes)(out, found)
    print(f"{written}; next: edgemim {following}")
    return found


def _describe(run: Path) -> Manifest:
    from edgemim.export.torch_session import describe_run

    return describe_run(run)


def _open_run(run: Path, config: PredictConfig) -> Session:
    """A run's model in PyTorch. Raises UserError on options that only an artifact has."""
    if config.runtime is not None or config.file != "onnx-fp32":
        raise UserError(f"{run} is a run, computed by PyTorch; --file and --runtime are for artifacts")
    from edgemim.export.torch_session import open_torch_session

    return open_torch_session(run, config.threads)


def _is_run(folder: Path) -> bool:
    return not (folder / MANIFEST_NAME).is_file() and (folder / "model" / "model.json").is_file()


def _segment(
    config: PredictConfig, session: Session, manifest: Manifest, paths: list[Path], out: Path
) -> list[dict[str, Any]]:
    # Matplotlib, for the legend, is slow to import.
    from edgemim.commands.segmentation.predict import segment_images

    with RunRecord("predict", out, config) as record:
        found = segment_images(session, manifest, paths, out, record, mode=config.mode, max_pixels=config.max_pixels)
    return found


def find_images(given: Sequence[Path]) -> list[Path]:
    """Files as given, folders replaced by the images below them, sorted. Raises UserError if there is nothing."""
    if not given:
        raise UserError("no images given; name image files or folders after the artifact")
    paths: list[Path] = []
    for path in given:
        if not path.is_dir():
            paths.append(path)
            continue
        below = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not below:
            raise UserError(f"folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        paths += below
    return paths


def list_batches(
    paths: Sequence[Path], manifest: Manifest, size: int, max_pixels: int, skipped: list[ImageError]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Names and float32 [b, 3, s, s] of the readable images, up to `size` at once; the others are put into `skipped`."""

    def prepare(path: Path) -> np.ndarray | ImageError:
        try:
            return manifest.preprocessing(load_image(path, max_pixels=max_pixels))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(usable_cpus()) as pool:
        ahead = max(size, _DECODED_AHEAD)
        for start in range(0, len(paths), ahead):
            chosen = paths[start : start + ahead]
            results = list(zip(chosen, pool.map(prepare, chosen), strict=True))
            skipped += [result for _, result in results if isinstance(result, ImageError)]
            good = [(path, result) for path, result in results if not isinstance(result, ImageError)]
            for first in range(0, len(good), size):
                batch = good[first : first + size]
                yield [path for path, _ in batch], np.stack([array for _, array in batch])


def _classify(
    session: Session, manifest: Manifest, names: list[Path], batch: np.ndarray, fixed: int | None, top: int
) -> list[dict[str, Any]]:
    logits = _rows(session, manifest, batch, fixed)
    labels = manifest.labels or tuple(str(index) for index in range(logits.shape[1]))
    if len(labels) != logits.shape[1]:
        raise UserError(f"the manifest has {len(labels)} labels, the model {logits.shape[1]} outputs; export it again")
    exponents = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities = exponents / exponents.sum(1, keepdims=True)
    return [
        {
            "image": str(name),
            "predictions": [
                {
                    "label": labels[index],
                    "index": int(index),
                    "probability": float(row_probabilities[index]),
                    "logit": float(row[index]),
                }
                for index in np.argsort(-row, kind="stable")[:top]
            ],
        }
        for name, row, row_probabilities in zip(names, logits, probabilities, strict=True)
    ]


def _take_features(
    session: Session, manifest: Manifest, names: list[Path], batch: np.ndarray, fixed: int | None, top: int
) -> list[dict[str, Any]]:
    found = _rows(session, manifest, batch, fixed)
    return [{"image": str(name), "features": row} for name, row in zip(names, found, strict=True)]


def _rows(session: Session, manifest: Manifest, batch: np.ndarray, fixed: int | None) -> np.ndarray:
    """What the model gives, [images, values]; a batch too small for a file of a fixed one is filled up."""
    count = len(batch)
    if fixed is not None and count < fixed:
        batch = np.concatenate([batch, np.zeros((fixed - count, *batch.shape[1:]), np.float32)])
    return output_of(session.run({manifest.input_name: batch}), manifest.output_names[0], ndim=2)[:count]


def _write_classes(out: Path, found: list[dict[str, Any]]) -> str:
    write_text(out / "predictions.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "predictions.csv", _as_csv(found))
    _show(found)
    return f"predictions in {out}"


def _as_csv(found: list[dict[str, Any]]) -> str:
    top = len(found[0]["predictions"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *(f"{name}_{rank}" for rank in range(1, top + 1) for name in ("label", "probability"))])
    for entry in found:
        values = [value for one in entry["predictions"] for value in (one["label"], f"{one['probability']:.6f}")]
        writer.writerow([entry["image"], *values])
    return text.getvalue()


def _report_skipped(record: RunRecord, skipped: list[ImageError]) -> None:
    for error in skipped[:10]:
        record.warn(f"left out: {error}")
    if len(skipped) > 10:
        record.warn(f"left out: {len(skipped) - 10} more, all listed in run.json")


def _show(found: list[dict[str, Any]]) -> None:
    table = Table()
    for column in ("image", "classes, most probable first"):
        table.add_column(column, overflow="fold")
    for entry in found[:_SHOWN]:
        ranked = ", ".join(f"{one['label']} {one['probability']:.1%}" for one in entry["predictions"])
        table.add_row(escape(_printable(entry["image"])), escape(_printable(ranked)))
    Console().print(table)
    if len(found) > _SHOWN:
        print(f"... and {len(found) - _SHOWN} more")


def _printable(text: str) -> str:
    """Names come from files: no terminal control characters."""
    return "".join(character if character.isprintable() else "�" for character in text)
