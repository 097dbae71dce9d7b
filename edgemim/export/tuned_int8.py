"""INT8 files of a fine-tuned model, where those made after training miss the gate in quality; judged by the same gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from edgemim.edge.artifact import Artifact, onnx_metadata
from edgemim.errors import MissingLibrary
from edgemim.export.int8_config import Int8Config, Target, pick_isa
from edgemim.export.int8_files import SourceGraph, Sources, make_int8
from edgemim.export.onnx import export_onnx
from edgemim.export.openvino import missing_packages
from edgemim.export.quantization_aware import AwareConfig, Tuned, tune
from edgemim.export.quantize import SQUARE_MAKER, Verdict, judge_answers, settle, trial_folder
from edgemim.export.training_images import TrainingImages
from edgemim.tasks.task import Task


def check_aware(task: Task, aware: AwareConfig) -> None:
    """Refuse, before any work, fine-tuning that cannot be. Raises UserError, or MissingLibrary without NNCF."""
    if not aware.epochs:
        return
    TrainingImages.of(task)
    if missing := missing_packages(quantize=True):
        raise MissingLibrary(
            f"--aware.epochs needs {' and '.join(missing)}: pip install 'edgemim[openvino]', or leave it out"
        )


def needs_tuning(verdict: Verdict) -> bool:
    """Whether a file misses the gate in its answers, or leaves layers in float and is too slow for that.

    Calibration images that are at fault are no matter of weights: nothing is tuned on them.
    """
    if verdict.outcome == "kept" or verdict.report.get("calibration_faults"):
        return False
    worse = any(not reason.startswith("slower") for reason in verdict.reasons)
    return worse or bool(verdict.report.get("float_layers"))


def tune_and_judge(
    artifact: Artifact, task: Task, config: Int8Config, aware: AwareConfig, verdicts: Sequence[Verdict], folder: Path
) -> list[Verdict]:
    """Fine-tune once for all targets that need it and judge their files anew; the other verdicts stay as they are.

    Args:
        artifact: gets the files that pass, or are forced; its FP32 file is only read.
        task: classification or segmentation, at the artifact's size.
        config: what the files were made with and must reach.
        aware: how to fine-tune; without epochs nothing is done.
        verdicts: of `quantize_artifact`.
        folder: for checkpoints meanwhile.

    Raises as `edgemim.export.quantization_aware.tune` and `edgemim.export.quantize.quantize_artifact` do.
    """
    if not aware.epochs or not any(needs_tuning(verdict) for verdict in verdicts):
        return list(verdicts)
    sources = SQUARE_MAKER.sources(artifact, task, config)
    images = np.concatenate([array for given in sources.graphs[0].inputs for array in given.values()])
    tuned = tune(task, aware, folder, calibration=images, full_range=pick_isa(config.isa) == "vnni")
    sources.record["aware"] = tuned.record
    return [
        _judge(artifact, verdict, tuned, sources, task, config) if needs_tuning(verdict) else verdict
        for verdict in verdicts
    ]


def told_of_tuning(aware: dict[str, Any], report: dict[str, Any]) -> str:
    """A sentence on what fine-tuning was worth, of a verdict's report and what stands in it under 'aware'."""
    made = f"{aware['epochs']:g} epochs ({aware['steps']} steps, learning rate {aware['lr']:g}, seed {aware['seed']})"
    if unused := aware.get("unused"):
        return f"{made} of fine-tuning gave an agreement of {unused['agreement']:.2f} %, less than without; not used"
    before = aware["after_training"]
    return (
        f"{made} of fine-tuning took agreement from {before['agreement']:.2f} to {report['agreement']:.2f} % and the "
        f"cosine from {before['cosine']:.5f} to {report['cosine']:.5f}"
    )


def _judge(
    artifact: Artifact, before: Verdict, tuned: Tuned, sources: Sources, task: Task, config: Int8Config
) -> Verdict:
    key = cast(Target, before.key)
    names = ("score_int8", "drop_points", "agreement", "cosine")
    aware = {**sources.record["aware"], "after_training": {name: before.report[name] for name in names}}
    with trial_folder(artifact.folder) as place:
        graphs = [_export(artifact, tuned, sources.graphs[0], place)]
        isa, execution = pick_isa(config.isa), config.execution
        entries, recipe = make_int8(artifact.folder, key, graphs, place / "int8", isa=isa, execution=execution)
        facts = {**sources.record, "recipe": f"quantization-aware fine-tuning, then {recipe}", "aware": aware}
        attempt = judge_answers(artifact, key, entries, facts, task, config, SQUARE_MAKER)
        if attempt.comparison.agreement >= before.report["agreement"]:
            return settle(artifact, key, attempt, task, config, SQUARE_MAKER)
    unused = {**aware, "unused": {name: getattr(attempt.comparison, name) for name in names}}
    return replace(before, report={**before.report, "aware": unused})


def _export(artifact: Artifact, tuned: Tuned, graph: SourceGraph, place: Path) -> SourceGraph:
    """The tuned model as an ONNX file beside which its INT8 form is made; like the artifact's in all but weights."""
    manifest, target = artifact.manifest, place / "tuned.onnx"
    batch = manifest.input_shape[0]
    [first] = graph.inputs[0].values()
    export_onnx(
        tuned.module,
        torch.from_numpy(first if batch is not None else np.repeat(first, 2, axis=0)),
        target,
        input_name=manifest.input_name,
        output_names=manifest.output_names,
        opset=manifest.opset,
        dynamic_batch=batch is None,
        metadata=onnx_metadata(manifest),
    )
    return replace(graph, path=target)
