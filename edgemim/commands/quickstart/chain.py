"""The quick start's chain: photos, teacher, arms, evaluation, export, INT8, benchmark, report."""

from __future__ import annotations

import time
from typing import Any

import torch

from edgemim.analysis.knn import extract_features, knn_accuracy
from edgemim.commands.benchmark import BenchmarkConfig, benchmark
from edgemim.commands.evaluate import EvaluateConfig, evaluate
from edgemim.commands.export import ExportConfig, export_model
from edgemim.commands.probe import ProbeConfig, probe
from edgemim.commands.quantize import QuantizeConfig, quantize
from edgemim.commands.quickstart.arms import train_all
from edgemim.commands.quickstart.config import ARMS, Outcome, QuickstartConfig
from edgemim.commands.quickstart.page import write_page
from edgemim.data.folders import scan_folder
from edgemim.data.loader import eval_loader
from edgemim.data.photos import write_photo_crops
from edgemim.edge.artifact import Artifact
from edgemim.edge.images import Preprocessing
from edgemim.errors import GateRefused, UserError
from edgemim.run import FolderLock, RunRecord, prepare_folder, read_record
from edgemim.training.recipe import changed_settings

_FREE = frozenset({"out", "overwrite", "processes"})


def quickstart(config: QuickstartConfig) -> dict[str, Any]:
    """Run the whole chain, or what is missing of it; returns what stands in run.json under 'results'.

    Raises:
        UserError: if the folder holds something else or a quick start with other settings.
        MissingLibrary: without the photos or the teacher's weights.
        GateRefused: if the exported model's parity is outside tolerance.
    """
    started = time.monotonic()
    out = config.out
    lock = open_folder(config)
    try:
        with RunRecord("quickstart", out, config) as record:
            print(f"quick start in {out}: a few minutes; start it again to go on if it is stopped", flush=True)
            crops = write_photo_crops(out / "photos", config.photos)
            outcome = Outcome(config, crops, started)
            ask_teacher(outcome)
            train_all(outcome)
            measure_features(outcome)
            deploy(outcome)
            record.results.update(summary(outcome))
            report = write_page(outcome, out / "report.html")
            record.results["report"] = str(report)
    finally:
        lock.release()
    for arm, figures in record.results["test_top1"].items():
        print(f"{ARMS[arm]:<20} test top-1 {' / '.join(f'{figure:.1f}' for figure in figures)} %")
    print(f"report: {report}; next: open it in a browser, then `edgemim pretrain --data DIR` on images of your own")
    return record.results


def open_folder(config: QuickstartConfig) -> FolderLock:
    """Lock the folder; go on with an earlier quick start of the same settings. Raises UserError otherwise."""
    before = read_record(config.out)
    if before and not config.overwrite:
        if before.get("verb") != "quickstart":
            raise UserError(f"{config.out} holds a run of `edgemim {before.get('verb')}`; give another --out")
        now = config.model_dump(mode="json")
        old = {key: value for key, value in before.get("config", {}).items() if key not in _FREE}
        changes = changed_settings(old, {key: value for key, value in now.items() if key not in _FREE})
        if changes:
            raise UserError(f"{config.out} holds a quick start with other settings ({'; '.join(changes)}); --overwrite "
                            "loses it, another --out keeps it")  # fmt: skip
    lock = FolderLock(config.out)
    prepare_folder(config.out, overwrite=config.overwrite, resume=bool(before) and not config.overwrite)
    return lock


def ask_teacher(outcome: Outcome) -> None:
    """Say which stage and input size were chosen, and what the teacher's own features are worth on these crops."""
    encoder = outcome.config.encoder
    teacher = outcome.config.teacher.build(encoder.image_size, encoder.grid)
    outcome.teacher = teacher.summary
    print(f"teacher {teacher.summary}", flush=True)
    preprocessing = Preprocessing(image_size=encoder.image_size, crop_pct=1.0)
    parts = [
        extract_features(
            lambda images: teacher(images.float() / 255).mean(1),
            eval_loader(scan_folder(folder), preprocessing, batch_size=64),
            torch.device("cpu"),
        )
        for folder in (outcome.crops.train, outcome.crops.test)
    ]
    outcome.teacher_knn = knn_accuracy(*parts[0], *parts[1], k=10)


def measure_features(outcome: Outcome) -> None:
    """k-NN accuracy of every pre-trained encoder, and the shown model's own evaluation."""
    config = outcome.config
    for arm, seed in outcome.pretrained:
        run = config.out / "pretrain" / f"{arm}-{seed}"
        results = probe(ProbeConfig(run=run, data=outcome.crops.train, val=outcome.crops.test, k=10, device="cpu"))
        outcome.knn[arm, seed] = results[f"knn_top1_block{config.encoder.depth}"]
    outcome.evaluated = evaluate(EvaluateConfig(run=outcome.shown_run, device="cpu"))


def deploy(outcome: Outcome) -> None:
    """Export with the parity gate, quantize with the INT8 gate (which may refuse), and benchmark what there is."""
    config = outcome.config
    outcome.artifact = config.out / "artifact"
    export_model(ExportConfig(run=outcome.shown_run, out=outcome.artifact, overwrite=True))
    try:
        quantize(QuantizeConfig(artifact=outcome.artifact))
    except GateRefused as error:
        # A refusal is a result: FP32 is kept and the report shows why.
        outcome.refusal = str(error)
        print(error, flush=True)
    outcome.int8 = read_record(outcome.artifact / "quantize")["results"]
    outcome.latency = benchmark(BenchmarkConfig(artifacts=(outcome.artifact,), seconds=config.benchmark_seconds))


def summary(outcome: Outcome) -> dict[str, Any]:
    """The figures for run.json."""
    manifest = Artifact.open(outcome.artifact).manifest
    return {
        "test_top1": {arm: outcome.accuracies(arm) for arm in ARMS},
        "learning_rates": outcome.chosen,
        "held_out_top1": {
            arm: {f"{lr:g}": top1 for lr, top1 in tried.items()} for arm, tried in outcome.choice.items()
        },
        "knn_top1": {f"{arm}-{seed}": figure for (arm, seed), figure in outcome.knn.items()},
        "teacher": outcome.teacher,
        "teacher_knn_top1": outcome.teacher_knn,
        "pretrain_minutes": {f"{arm}-{seed}": outcome.minutes(arm, seed) for arm, seed in outcome.pretrained},
        "parity": manifest.parity,
        "int8": outcome.int8,
        "int8_refused": outcome.refusal,
        "minutes": (time.monotonic() - outcome.started) / 60,
    }
