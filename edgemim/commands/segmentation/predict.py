"""`edgemim predict` of a segmentation model: a mask and an overlay for each image, and a legend; no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import track

from edgemim.edge.artifact import Manifest
from edgemim.edge.images import ImageError, load_image
from edgemim.edge.overlay import overlay, plot_legend, save_mask, save_picture
from edgemim.edge.report import save_figure
from edgemim.edge.runtime import Session
from edgemim.edge.runtime.outputs import output_of
from edgemim.edge.segmentation import RunModel, label_pixels
from edgemim.errors import UserError
from edgemim.run import RunRecord, write_text

_NAMED = 10


def segment_images(
    session: Session,
    manifest: Manifest,
    paths: Sequence[Path],
    out: Path,
    record: RunRecord,
    *,
    mode: Literal["slide", "whole"] | None,
    max_pixels: int,
) -> list[dict[str, Any]]:
    """Label images; writes OUT/masks/NAME.png, OUT/overlays/NAME.png, OUT/legend.png and OUT/predictions.json.

    Returns [{image, mask, overlay, shares: {class: percent of the pixels}}]. Raises UserError if no image can be read.
    """
    inference = manifest.inference
    if inference is None or not manifest.labels:
        raise UserError(f"the manifest of {manifest.name} does not say how images are labelled; export it again")
    if mode is not None:
        inference = inference.model_copy(update={"mode": mode})
    run = square_model(session, manifest)
    found: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    for path, name in track(list(zip(paths, _names(paths), strict=True)), description="labelling", transient=True):
        try:
            image = load_image(path, max_pixels=max_pixels)
            mask = label_pixels(image, run, manifest.preprocessing, inference)
        except ImageError as error:  # of a shape too extreme, labelling does not know the name
            skipped.append((str(path), error.reason))
            continue
        found.append(_write(path, image, mask, manifest.labels, out, name))
    record.results.update(images=len(found), skipped=[list(pair) for pair in skipped])
    for name, reason in skipped[:_NAMED]:
        record.warn(f"left out: image {name}: {reason}")
    if not found:
        raise UserError(f"none of the {len(paths)} images could be read; the first: {': '.join(skipped[0])}")
    save_figure(plot_legend(manifest.labels), out / "legend.png")
    write_text(out / "predictions.json", json.dumps(found, indent=1) + "\n")
    return found


def square_model(session: Session, manifest: Manifest) -> RunModel:
    """The session as a function of one normalised square [1, 3, s, s]; a fixed batch is filled up.

    The function raises UserError if the outputs are not a logit for each class and pixel.
    """
    fixed, size = manifest.input_shape[0] or 1, manifest.preprocessing.image_size
    wanted = (len(manifest.labels), size, size)

    def run(images: np.ndarray) -> np.ndarray:
        filled = np.repeat(images, fixed, axis=0) if fixed > 1 else images
        logits = output_of(session.run({manifest.input_name: filled}), manifest.output_names[0], ndim=4)
        if logits.shape[1:] != wanted:
            raise UserError(f"the model gives {logits.shape[1:]}, the manifest says {wanted}; export it again")
        return logits[:1]

    return run


def _names(paths: Sequence[Path]) -> list[str]:
    """A file name for each image: its own, numbered where several share it."""
    taken: dict[str, int] = {}
    names = []
    for path in paths:
        count = taken[path.stem] = taken.get(path.stem, 0) + 1
        names.append(path.stem if count == 1 else f"{path.stem}~{count}")
    return names


def _write(
    path: Path, image: np.ndarray, mask: np.ndarray, labels: tuple[str, ...], out: Path, name: str
) -> dict[str, Any]:
    classes = len(labels)
    files = {kind: out / folder / f"{name}.png" for kind, folder in (("mask", "masks"), ("overlay", "overlays"))}
    save_mask(mask, files["mask"], classes)
    save_picture(overlay(image, mask, classes), files["overlay"])
    share = 100 * np.bincount(mask.ravel(), minlength=classes) / mask.size
    ranked = {labels[i]: round(float(share[i]), 2) for i in np.argsort(-share, kind="stable") if share[i] > 0}
    return {"image": str(path), **{kind: str(file) for kind, file in files.items()}, "shares": ranked}
