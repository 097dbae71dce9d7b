"""INT8 files of an artifact, one for each target, each judged against FP32 before it may stay.

No single INT8 file is fastest everywhere: ONNX Runtime wants dynamic quantisation, OpenVINO wants NNCF's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgemim.edge.artifact import Artifact, ModelFile
from edgemim.edge.runtime import open_session
from edgemim.errors import UserError
from edgemim.export.fidelity import Portions, Speed, thread_counts, time_models
from edgemim.export.graph_blocks import blocks_of
from edgemim.export.int8_config import Int8Config, Target, limits_of, pick_isa, pick_targets
from edgemim.export.int8_files import Layer, SourceGraph, Sources, hash_inputs, make_int8, smoothed_sources
from edgemim.export.int8_gate import COSINE_INPUTS, Maker, calibration_faults, measure_file, objections, runtime_of
from edgemim.export.parity import chunks
from edgemim.export.reduced import require_bf16
from edgemim.export.sensitivity import rank_blocks, search_floats
from edgemim.export.smoothing import Inputs
from edgemim.tasks.comparison import Comparison
from edgemim.tasks.task import Task

ATTEMPTS = 3
"""How often a disturbed timing is repeated."""


@dataclass(frozen=True)
class Verdict:
    """What became of one target.

    Attributes:
        key: the target.
        outcome: 'kept', 'forced' or 'refused'.
        reasons: what the gate holds against it.
        report: the figures, as the manifest and run.json keep them; scores and agreement in percent.
    """

    key: str
    outcome: Literal["kept", "forced", "refused"]
    reasons: tuple[str, ...]
    report: dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One INT8 form of a target in a trial folder, and what its answers were worth."""

    candidate: Artifact
    entries: dict[str, ModelFile]
    recipe: dict[str, Any]
    comparison: Comparison
    faults: tuple[str, ...]


def quantize_artifact(
    artifact: Artifact, task: Task, config: Int8Config, *, overwrite: bool = False, maker: Maker | None = None
) -> list[Verdict]:
    """Make and judge each target; what passes (or is forced) joins the artifact, of the rest nothing stays.

    The FP32 file is only read. `artifact.manifest` is replaced when a file joins.

    Raises:
        UserError: a target is there already and `overwrite` is not set; the task's images or labels do not fit.
        MissingLibrary: a target was asked for whose packages are missing.
        ModelRefused: a quantiser or runtime cannot handle the model.
    """
    targets = pick_targets(config.targets)
    if config.execution == "bf16":
        require_bf16(openvino="openvino-int8" in targets)
    there = [key for key in targets if key in artifact.manifest.files]
    if there and not overwrite:
        raise UserError(f"{artifact.folder} has {' and '.join(there)} already; --overwrite makes it again")
    check_labels(artifact, task)
    maker = maker or SQUARE_MAKER
    with trial_folder(artifact.folder) as place:
        sources = maker.sources(artifact, task, config)
        held_out = next(iter(maker.held_out(artifact, task, COSINE_INPUTS).values()))
        sources.record["calibration_faults"] = calibration_faults(sources.graphs[0].inputs, held_out)
        if config.smooth:
            sources = smoothed_sources(sources, place, config.smooth_alpha)
        return [_quantize(artifact, key, sources, task, config, maker) for key in targets]


def check_labels(artifact: Artifact, task: Task) -> None:
    """Raises UserError if the task's classes are not the artifact's."""
    if task.labels != artifact.manifest.labels:
        raise UserError(f"the classes of the run are not those of {artifact.folder}; give the run it was exported from")


def _quantize(
    artifact: Artifact, key: Target, sources: Sources, task: Task, config: Int8Config, maker: Maker
) -> Verdict:
    with trial_folder(artifact.folder) as place:
        best = build_best(artifact, key, sources, place, task, config, maker)
        return settle(artifact, key, best, task, config, maker)


def build_best(
    artifact: Artifact, key: Target, sources: Sources, place: Path, task: Task, config: Int8Config, maker: Maker
) -> Attempt:
    """The plain INT8 form of a target, or where it misses the gate and layers in float mend it, the form with these."""
    isa, built = pick_isa(config.isa), 0

    def attempt(floats: tuple[Layer, ...]) -> Attempt:
        nonlocal built
        built += 1
        entries, recipe = make_int8(
            artifact.folder, key, sources.graphs, place / str(built), isa=isa, floats=floats, execution=config.execution
        )
        facts = {"recipe": recipe, **sources.record, **_told(sources, floats)}
        return judge_answers(artifact, key, entries, facts, task, config, maker)

    def rank(found: Attempt) -> list[tuple[Layer, ...]]:
        paths = [found.candidate.file(key + graph.suffix) for graph in sources.graphs]
        return rank_blocks(sources.graphs, paths)

    plain = attempt(())
    if not (plain.faults and config.search) or sources.record["calibration_faults"]:
        return plain
    best = search_floats(plain, attempt, rank)
    searched = {"forms_tried": built, "found": best is not None, "all_int8": _quality(plain)}
    best = best or plain
    return dataclasses.replace(best, recipe={**best.recipe, "search": searched})


def _told(sources: Sources, floats: tuple[Layer, ...]) -> dict[str, list[str]]:
    """The layers that stay in float, and the blocks that they are of, for the report."""
    blocks = {
        f"{graph.suffix.removeprefix('-')} {block.name}".strip(): {(graph.suffix, node) for node in block.nodes}
        for graph in (sources.graphs if floats else ())
        for block in blocks_of(graph.path)
    }
    touched = [name for name, layers in blocks.items() if layers & set(floats)]
    return {"float_layers": [f"{node}{suffix}" for suffix, node in floats], "float_blocks": touched}


def _quality(attempt: Attempt) -> dict[str, Any]:
    names = ("drop_points", "agreement", "cosine")
    return {name: getattr(attempt.comparison, name) for name in names}


def judge_answers(
    artifact: Artifact,
    key: Target,
    entries: dict[str, ModelFile],
    recipe: dict[str, Any],
    task: Task,
    config: Int8Config,
    maker: Maker,
) -> Attempt:
    """Compare files that lie in a trial folder with FP32; `recipe` is what to record of how they were made."""
    files = {**artifact.manifest.files, **entries}
    candidate = Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files}))
    comparison = maker.compare(candidate, key, task, config)
    faults = tuple(objections(comparison, [], limits_of(task, config)))
    return Attempt(candidate, entries, recipe, comparison, faults)


def settle(artifact: Artifact, key: Target, best: Attempt, task: Task, config: Int8Config, maker: Maker) -> Verdict:
    """Time a form, give the verdict, and move it into the artifact if it may stay."""
    report = {**best.recipe, **measure_file(best.candidate, key, best.comparison, task, config, maker)}
    reasons = (*best.recipe.get("calibration_faults", ()), *report["reasons"])
    outcome = "kept" if not reasons else "forced" if config.force else "refused"
    report |= {"outcome": outcome, "forced": outcome == "forced", "reasons": list(reasons)}
    if outcome != "refused":
        _install(artifact, key, best.entries, report)
    return Verdict(key, outcome, reasons, report)


@contextlib.contextmanager
def trial_folder(folder: Path) -> Iterator[Path]:
    """A folder inside the artifact for files that are not part of it yet; gone at the end, whatever happens."""
    trial = Path(tempfile.mkdtemp(prefix=".trial-", dir=folder))
    try:
        yield trial
    except OSError as error:
        raise UserError(f"cannot write below {folder}: {error.strerror or error}; free space and try again") from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def square_sources(artifact: Artifact, task: Task, config: Int8Config) -> Sources:
    """The one graph of a classifier or segmenter. Raises UserError without training images."""
    images, digest = calibration_images(task, config.calibration)
    manifest = artifact.manifest
    inputs = [{manifest.input_name: piece} for piece in chunks(images, manifest.input_shape[0] or 1)]
    record = {"calibration_images": len(images), "calibration_sha256": digest}
    return Sources((SourceGraph("", artifact.file("onnx-fp32"), inputs),), record)


def calibration_images(task: Task, count: int) -> tuple[np.ndarray, str]:
    """Up to `count` normalised training images, float32 [n, 3, s, s], and the SHA-256 of their values.

    Raises UserError if there are none.
    """
    batches = list(task.calibration_batches(count))
    if not batches:
        raise UserError("there are no training images to calibrate on; give --data DIR with images")
    images = np.ascontiguousarray(np.concatenate(batches))
    return images, hash_inputs([{"images": images}])


def _compare(candidate: Artifact, key: str, task: Task, config: Int8Config) -> Comparison:
    batch = candidate.manifest.input_shape[0] or 1
    fp32 = Portions(open_session(candidate, "onnx-fp32", runtime=runtime_of(candidate, key)), batch)
    return task.compare(fp32, Portions(open_session(candidate, key), batch), config.images)


def _time(candidate: Artifact, key: str, task: Task, config: Int8Config) -> list[Speed]:
    manifest, speeds = candidate.manifest, []
    inputs = {manifest.input_name: task.example_input(manifest.input_shape[0] or 1).numpy()}
    for threads in thread_counts(config.threads):
        fp32 = open_session(candidate, "onnx-fp32", runtime=runtime_of(candidate, key), threads=threads)
        int8 = open_session(candidate, key, threads=threads)
        speeds.append(time_models(fp32, int8, inputs, seconds=config.seconds, attempts=ATTEMPTS))
    return speeds


def _held_out(artifact: Artifact, task: Task, count: int) -> dict[str, list[Inputs]]:
    manifest = artifact.manifest
    images = np.concatenate([images for images, _ in task.evaluation_batches(count)])
    return {"": [{manifest.input_name: piece} for piece in chunks(images, manifest.input_shape[0] or 1)]}


SQUARE_MAKER = Maker(square_sources, _compare, _time, _held_out)
"""For models of one square image: classification, segmentation."""


def _install(artifact: Artifact, key: str, entries: dict[str, ModelFile], report: dict[str, Any]) -> None:
    """Move judged files from their trial folder into the artifact, then name them in the manifest."""
    installed = {}
    for name, entry in entries.items():
        moved = {path: Path(path).name for path in (entry.path, *entry.companions)}
        for source, target in moved.items():
            os.replace(artifact.folder / source, artifact.folder / target)
        companions = {moved[path]: digest for path, digest in entry.companions.items()}
        installed[name] = entry.model_copy(update={"path": moved[entry.path], "companions": companions})
    manifest = artifact.manifest
    artifact.manifest = manifest.model_copy(
        update={
            "files": {**manifest.files, **installed},
            "quantization": {**manifest.quantization, key: report},
        }
    )
    artifact.save_manifest()
