"""The quick start's report: what was done, what came out, and what the figures do and do not show."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgemim.commands.quickstart.config import ARMS, SHOWN_ARM, Outcome
from edgemim.edge.artifact import Artifact, Manifest
from edgemim.edge.machine import describe
from edgemim.edge.report import (
    Report,
    column,
    plot_bars,
    plot_confusion,
    plot_curves,
    plot_images,
    plot_latency,
    read_metrics,
)

_SAMPLES = 12


def write_page(outcome: Outcome, path: Path) -> Path:
    """Write the report of a finished quick start."""
    manifest = Artifact.open(outcome.artifact).manifest
    report = Report("edgemim quick start", _lead(outcome, manifest))
    _in_short(report, outcome, manifest)
    _images(report, outcome)
    _pretraining(report, outcome)
    _accuracy(report, outcome)
    _shown_model(report, outcome)
    _parity(report, manifest)
    _int8(report, outcome)
    _latency(report, outcome)
    _again(report, outcome)
    return report.save(path)


def _lead(outcome: Outcome, manifest: Manifest) -> str:
    size = outcome.config.encoder
    return (
        f"A vision transformer of {manifest.parameters:,} parameters ({size.depth} blocks, {size.width} wide, patches of "
        f"{size.patch_size} px on {size.image_size} px images), pre-trained, fine-tuned, exported, quantized and timed on "
        f"this machine in {(time.monotonic() - outcome.started) / 60:.1f} minutes."
    )


def _in_short(report: Report, outcome: Outcome, manifest: Manifest) -> None:
    report.section("In short")
    means = {arm: float(np.mean(outcome.accuracies(arm))) for arm in ARMS}
    figures = "; ".join(f"{title} {means[arm]:.1f} %" for arm, title in ARMS.items())
    seeds = len(outcome.config.seeds)
    report.text(f"Test accuracy, mean of {seeds} seed{'s' * (seeds > 1)}, at the same fine-tuning budget: {figures}.")
    accepted = [key for key in manifest.files if "int8" in key]
    if accepted:
        report.note(f"INT8 accepted: {', '.join(accepted)}.", "good")
    if outcome.refusal:
        report.note(outcome.refusal, "warn")
    report.note(
        "What this does not show: how good a model becomes. Test crops come from the same photos as training crops "
        "(the other part of each), so light, camera and subject are known; the set is small, the training short, and the "
        "teacher has seen a million labelled photos. It shows that the chain works on real images, and how the parts "
        "compare under one budget. A difference of a few points between two arms is within the noise of this test set: "
        f"with {_count(outcome.crops.test)} test crops, one standard error is about {_standard_error(outcome):.1f} points, "
        "and seeds add their own.",
        "warn",
    )


def _standard_error(outcome: Outcome) -> float:
    return 100 * float(np.sqrt(0.25 / max(_count(outcome.crops.test), 1)))


def _images(report: Report, outcome: Outcome) -> None:
    crops, config = outcome.crops, outcome.config.photos
    report.section("The images")
    report.text(
        f"Which of {len(crops.classes)} photos is this crop from? Grey crops of {config.crop_px} px; those for training "
        f"come from the left {config.train_part:.0%} of each photo, those for testing from the rest. "
        f"{_count(crops.unlabelled):,} unlabelled crops, {_count(crops.train):,} labelled, {_count(crops.test):,} for "
        f"testing; guessing gives {100 / len(crops.classes):.1f} %."
    )
    half = min(_SAMPLES // 2, config.train_per_photo, config.test_per_photo)
    rows = [[*_first(crops.train / name, half), *_first(crops.test / name, half)] for name in crops.classes[::3]]
    titles = [f"{part} {i + 1}" for part in ("train", "test") for i in range(half)]
    report.figure(plot_images(rows, titles), f"Crops of {', '.join(crops.classes[::3])}; credits stand below.")


def _pretraining(report: Report, outcome: Outcome) -> None:
    report.section("Pre-training")
    report.text(f"Teacher: {outcome.teacher}. It is frozen and used for pre-training only.")
    root, first = outcome.config.out / "pretrain", outcome.config.seeds[0]
    for name, label in (("loss_feature", "feature loss (smooth L1)"), ("loss_pixel", "pixel loss (normalised MSE)")):
        series = {
            ARMS[arm]: _mean_curve(outcome, arm, name) for arm in dict.fromkeys(arm for arm, _ in outcome.pretrained)
        }
        series = {title: points for title, points in series.items() if points[0]}
        if series:
            report.figure(
                plot_curves(series, x="step", y=label),
                f"{label}, mean of the seeds, of the arms that have this branch.",
            )
    for arm in dict.fromkeys(arm for arm, _ in outcome.pretrained):
        pictures = sorted((root / f"{arm}-{first}" / "pictures").glob("reconstruction-*.png"))
        if pictures:
            report.figure(
                pictures[-1],
                f"{ARMS[arm]}, seed {first}: masked input, reconstruction (visible patches shown as they are; contrast "
                "of each predicted patch taken from the true one) and original.",
            )


def _mean_curve(outcome: Outcome, arm: str, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a logged figure, averaged over the arm's seeds."""
    root = outcome.config.out / "pretrain"
    found = [column(read_metrics(root / f"{arm}-{seed}" / "metrics.jsonl"), name) for seed in outcome.config.seeds]
    values = [points for _, points in found]
    return found[0][0], [float(np.mean(step)) for step in zip(*values, strict=True)]


def _accuracy(report: Report, outcome: Outcome) -> None:
    config = outcome.config
    report.section("Accuracy")
    rows = []
    for arm, title in ARMS.items():
        top1 = outcome.accuracies(arm)
        knn = [outcome.knn[arm, seed] for seed in config.seeds if (arm, seed) in outcome.knn]
        minutes = [outcome.minutes(arm, seed) for seed in config.seeds if (arm, seed) in outcome.pretrained]
        row = [title, *(f"{figure:.1f}" for figure in top1), _spread(top1), _spread(knn) if knn else "–"]
        rows.append([*row, f"{np.mean(minutes):.1f}" if minutes else "0", f"{outcome.chosen[arm]:g}"])
    seeds = [f"seed {seed}" for seed in config.seeds]
    columns = ["pre-training", *seeds, "mean ± dev.", "k-NN", "pre-training min", "learning rate"]
    steps = next(iter(outcome.finetuned.values()))["steps"]
    caption = (
        f"Top-1 in % on {_count(outcome.crops.test)} test crops after {steps} steps of fine-tuning on "
        f"{_count(outcome.crops.train)} labelled crops. k-NN: the pre-trained features without fine-tuning (the teacher's "
        f"own: {outcome.teacher_knn:.1f}). Minutes: of one run on one CPU thread, {config.pretrain_epochs:g} passes over the "
        "unlabelled crops. Deviation: of the sample of seeds."
    )
    report.table(columns, rows, caption)
    chance = 100 / len(outcome.crops.classes)
    values = {title: outcome.accuracies(arm) for arm, title in ARMS.items()}
    report.figure(
        plot_bars(values, y="test top-1 in %", baseline=chance, note=f"guessing: {chance:.1f} %"),
        "Mean, sample deviation and every seed.",
    )
    report.text(
        f"Each arm has its own learning rate, chosen on {config.choose_share:.0%} of the labelled training crops "
        f"(held out of a run with seed {config.seeds[0]}; of equals the smallest). The test crops played no part in it."
    )
    rates = sorted(config.finetune_lrs)
    report.table(
        ["pre-training", *(f"{rate:g}" for rate in rates)],
        [[ARMS[arm], *(f"{tried[rate]:.1f}" for rate in rates)] for arm, tried in outcome.choice.items()],
        "Held-out top-1 in % for each peak learning rate.",
    )


def _spread(figures: list[float]) -> str:
    if len(figures) < 2:
        return f"{figures[0]:.1f}"
    return f"{np.mean(figures):.1f} ± {np.std(figures, ddof=1):.1f}"


def _shown_model(report: Report, outcome: Outcome) -> None:
    report.section("The exported model")
    first, figures = outcome.config.seeds[0], outcome.evaluated
    fifth = f", top-5 {figures['top5']:.1f} %" if "top5" in figures else ""
    report.text(
        f"From here on: {ARMS[SHOWN_ARM]}, seed {first}, fixed beforehand and not picked by its test figure. "
        f"Top-1 {figures['top1']:.1f} %{fifth}."
    )
    counts = np.asarray(figures["confusion"])
    report.figure(
        plot_confusion(counts, outcome.crops.classes), "Test crops by true photo (row) and named photo (column)."
    )


def _parity(report: Report, manifest: Manifest) -> None:
    report.section("Parity with PyTorch")
    report.text(
        "The exported file is compared with PyTorch on real images; outside the tolerance, nothing is exported."
    )
    rows = [[name.replace("_", " "), f"{value:.3g}"] for name, value in manifest.parity.items()]
    report.table(["measure", "value"], rows)


def _int8(report: Report, outcome: Outcome) -> None:
    report.section("INT8")
    report.text(
        "Weights and activations in 8 bits, judged against FP32 on the same runtime by accuracy, agreement, cosine of the "
        "outputs and time. A file that is slower or worse is refused; the others, FP32 among them, are what is used."
    )
    if outcome.refusal:
        report.note(outcome.refusal, "warn")
    rows = [
        [
            key, outcome.int8["outcomes"][key], figures["images"], _percent(figures["score_fp32"]),
            _percent(figures["score_int8"]), _percent(figures["agreement"]), f"{figures['cosine']:.5f}",
            " / ".join(map(_speed, figures["speeds"])),
        ]
        for key, figures in outcome.int8["quantization"].items()
    ]  # fmt: skip
    columns = ["file", "verdict", "images", "top-1 FP32", "top-1 INT8", "same answer", "cosine", "time over FP32"]
    report.table(
        columns, rows, "Time over FP32: median paired ratio; a question mark says that other processes disturbed it."
    )


def _speed(speed: Mapping[str, Any]) -> str:
    return f"{speed['ratio']:.2f}{'?' * speed['undecided']} ({speed['threads']} thr.)"


def _percent(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.2f} %"


def _latency(report: Report, outcome: Outcome) -> None:
    report.section("Latency on this machine")
    rows = [row for row in outcome.latency["rows"] if row["status"] == "ok"]
    if outcome.latency["disturbed"]:
        report.note(
            "Other processes took CPU time while this was measured (column 'others'); trust ratios, not times.", "warn"
        )
    cells = [
        [
            row["file"], row["runtime"], row["batch"], row["threads"],
            *(f"{row[f'latency_p{percent}_ms']:.2f}" for percent in (50, 90, 99)),
            f"{row['throughput_images_per_s']:.0f}", f"{row['speedup']:.2f}×{'?' * bool(row['speedup_disturbed'])}",
            f"{row['model_size_mib']:.2f}" if row["model_size_mib"] else "–", f"{row['memory_peak_mib']:.0f}",
            f"{row['foreign_load']:.0%}",
        ]
        for row in rows
    ]  # fmt: skip
    columns = "file|runtime|batch|threads|p50 ms|p90 ms|p99 ms|images/s|speed-up|MiB|peak MiB|others".split("|")
    report.table(
        columns, cells, "Latency of one call; speed-up is the median paired ratio to PyTorch in the same blocks."
    )
    bars = {
        f"{row['file']} on {row['runtime']}, {row['threads']} thread{'s' * (row['threads'] > 1)}": tuple(
            row[f"latency_p{percent}_ms"] for percent in (50, 90, 99)
        )
        for row in rows
        if row["batch"] == 1
    }
    if bars:
        report.figure(plot_latency(bars), "One image at a time.")
    for row in outcome.latency["rows"]:
        if row["status"] != "ok":
            report.text(f"{row['file']} on {row['runtime']} was not measured: {row['reason']}")


def _again(report: Report, outcome: Outcome) -> None:
    out, config = outcome.config.out, outcome.config
    first, machine = config.seeds[0], describe()
    report.section("The same by hand")
    report.text("Each run's folder holds its whole configuration; these commands repeat one arm.")
    report.code(
        "\n".join(
            [
                f"edgemim pretrain --config {out}/pretrain/both-{first}/config.yaml --out runs/pretrain",
                f"edgemim probe runs/pretrain --data {out}/photos/train --val {out}/photos/test",
                f"edgemim finetune --config {out}/finetune/both-{first}/config.yaml --init runs/pretrain --out runs/finetune",
                "edgemim evaluate runs/finetune",
                "edgemim export runs/finetune --onnx --int8 --out runs/artifact",
                "edgemim benchmark runs/artifact",
            ]
        )
    )
    report.section("Environment")
    rows = [[name.replace("_", " "), _plain(value)] for name, value in machine.items() if name != "versions"]
    report.table(["machine", ""], rows)
    report.table(["package", "version"], machine["versions"].items())
    report.section("Credits of the photos")
    report.code((outcome.crops.train.parent / "CREDITS.txt").read_text())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.png"))


def _first(folder: Path, count: int) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))[:count]]
