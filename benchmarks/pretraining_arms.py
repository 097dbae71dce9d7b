"""What pre-training is worth on a folder of labelled images: arms by seeds, pre-trained, probed and fine-tuned, as a table.

    python benchmarks/pretraining_arms.py --config configs/study/trashnet_arms.yaml --data trashnet --out runs/trashnet_arms

It drives `edgemim.pretrain`, `edgemim.probe` and `edgemim.finetune`. For every arm and seed an encoder is pre-trained on
train/ (none in the arm from scratch) and its frozen features are probed. With the first seed each arm chooses its learning
rate of fine-tuning on a share of train/, never on val/: a choice at an end of the list tries one rate more there. Then
each seed is fine-tuned on all of train/ and measured once on val/. Started again, it skips what is finished and resumes
what was stopped; table.json, table.md and table.png are written anew after every seed. Minutes are CPU time of the
process, which other processes do not lengthen; with --minutes it measures the loop's rate instead, which wants quiet.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from matplotlib.figure import Figure

import edgemim
from edgemim import FinetuneConfig, PretrainConfig, ProbeConfig
from edgemim.commands.pretrain import build_teacher, cache_teacher
from edgemim.config import Config, parse
from edgemim.data.folders import find_splits, scan_folder
from edgemim.data.transforms import PretrainTransform
from edgemim.edge.images import Preprocessing
from edgemim.edge.machine import LoadMeter, describe
from edgemim.edge.report import COLOURS, save_figure
from edgemim.errors import EdgemimError, UserError
from edgemim.methods import FeatureDistillConfig, MaeConfig, MethodConfig
from edgemim.models.build import build_encoder
from edgemim.models.weights import save_model
from edgemim.run import FolderLock, RunRecord, read_record, write_text
from edgemim.teachers.cached import CachedTeacher
from edgemim.training.distributed import open_world
from edgemim.training.recipe import changed_settings

_MEASURES = {"knn": "k-NN", "linear": "linear probe", "finetune": "fine-tuned"}


class ArmConfig(Config):
    """One way to begin: random weights, or a pre-training with what it changes of the study's common settings."""

    label: str = ""
    """Name in the table; default the arm's key."""
    method: MethodConfig | None = None
    """What is optimised; none begins from random weights."""
    transform: PretrainTransform | None = None
    """Its own augmentation while pre-training."""
    epochs: float | None = pydantic.Field(default=None, gt=0)
    """Its own length of pre-training."""
    base_lr: float | None = pydantic.Field(default=None, gt=0)
    """Its own learning rate of pre-training."""


ARMS = {
    "scratch": ArmConfig(label="from scratch"),
    "mae": ArmConfig(label="MAE", method=MaeConfig()),
    "distill": ArmConfig(
        label="distillation without MIM", method=FeatureDistillConfig(mask_ratio=0.0, pixel_weight=0.0)
    ),
    "both": ArmConfig(label="MAE + distillation", method=FeatureDistillConfig()),
}


class ArmsConfig(Config):
    """A table of what pre-training is worth, on a folder with train/ and val/ and one sub-folder a class in each."""

    data: Path | None = None
    """Folder with train/ and val/."""
    out: Path = Path("runs/pretraining_arms")
    """Folder for all runs and the table."""
    seeds: tuple[int, ...] = pydantic.Field(default=(0, 1, 2), min_length=1)
    """Everything is done once for each; the first also chooses the learning rates of fine-tuning."""
    arms: dict[str, ArmConfig] = pydantic.Field(default=ARMS, min_length=1)
    """What is compared."""
    images_per_class: int | None = pydantic.Field(default=None, ge=2)
    """Images of each class of train/ that are used, drawn with seed 0; default all."""
    labelled_per_class: int | None = pydantic.Field(default=None, ge=2)
    """Those of them whose labels are used, by probes and fine-tuning; default all."""
    pretrain: PretrainConfig = PretrainConfig()
    """Settings of every pre-training; the teacher goes to arms whose method has one."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Settings of every fine-tuning; `val_share` is held out while a rate is chosen."""
    rates: tuple[float, ...] = pydantic.Field(default=(5e-4, 1.5e-3, 4.5e-3), min_length=2)
    """Peak learning rates of fine-tuning that every arm tries, smallest first."""
    most_rates: int = pydantic.Field(default=5, ge=2)
    """Rates that an arm tries at most, where its best one lies at an end."""
    probe: ProbeConfig = ProbeConfig(probe="both", seeds=1)
    """Settings of every probe."""
    threads: int | None = pydantic.Field(default=None, ge=1)
    """Threads of torch; default torch's own choice."""
    minutes: bool = False
    """Only measure each arm's rate of pre-training over `minutes_epochs`, in OUT/minutes.json. Wants a quiet machine."""
    minutes_epochs: float = pydantic.Field(default=1.0, gt=0)
    """Length of that measurement."""

    @pydantic.field_validator("rates")
    @classmethod
    def _check_rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)) or value[0] <= 0:
            raise ValueError(f"rates {value} must be positive and rise")
        return value


@dataclass(frozen=True)
class Places:
    """The folders of one study, absolute."""

    out: Path
    train: Path
    labelled: Path
    val: Path

    @staticmethod
    def of(config: ArmsConfig) -> Places:
        """Find the splits and write the reduced ones. Raises UserError without train/ and val/."""
        if config.data is None:
            raise UserError("give --data DIR, a folder with train/ and val/")
        data, out = config.data.absolute(), config.out.absolute()
        splits = find_splits(data)
        if "train" not in splits or "val" not in splits:
            raise UserError(f"{data} has no train/ and val/; the table is measured on val/")
        train = reduced(splits["train"], config.images_per_class, out / "data")
        return Places(out, train, reduced(train, config.labelled_per_class, out / "data"), splits["val"])


def reduced(folder: Path, per_class: int | None, root: Path) -> Path:
    """A folder of links to `per_class` images of each class, drawn with seed 0; the folder itself where none is given."""
    if per_class is None:
        return folder
    images, generator = scan_folder(folder), np.random.default_rng(0)
    target = root / f"{per_class}-a-class"
    for number, name in enumerate(images.classes):
        (target / name).mkdir(parents=True, exist_ok=True)
        for chosen in generator.permutation(np.flatnonzero(images.labels == number))[:per_class]:
            path = images.path(int(chosen))
            link = target / name / path.name
            if not link.is_symlink():
                link.symlink_to(path.resolve())
    return target


def run_once(verb: Callable[[Any], dict[str, Any]], folder: Path, config: Any) -> dict[str, Any]:
    """Results of a verb in a folder: those that stand there if it is finished, else of running or resuming it.

    The CPU seconds of a training that was not stopped in between are kept beside it.

    Raises:
        UserError: if the folder holds a run with other settings.
    """
    record = read_record(folder)
    before, now = record.get("config", {}), config.model_dump(mode="json")
    if record and (changes := changed_settings(before, now)):
        raise UserError(f"{folder} holds a run with other settings ({'; '.join(changes)}); give another --out")
    if record.get("status") == "done":
        return record["results"]
    if "resume" in type(config).model_fields:
        config = config.model_copy(update={"resume": True})
    print(f"--- {folder}", flush=True)
    spent = cpu_seconds()
    results = verb(config)
    if not record:
        write_text(folder / "cpu.json", json.dumps({"cpu_seconds": cpu_seconds() - spent}) + "\n")
    return results


def cpu_seconds() -> float:
    """CPU time of this process and of the reading processes that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(times.ru_utime + times.ru_stime for times in used)


class Study:
    """The runs of a study; every step is skipped where its result stands already."""

    def __init__(self, config: ArmsConfig) -> None:
        self.config, self.places = config, Places.of(config)
        self.teacher_minutes: float | None = None

    def pretraining(self, arm: str, seed: int) -> PretrainConfig:
        """The configuration of one pre-training."""
        own, common = self.config.arms[arm], self.config.pretrain
        assert own.method is not None
        taught = own.method.teacher_kind != "none"
        changes = {key: value for key in ("transform", "epochs", "base_lr") if (value := getattr(own, key)) is not None}
        transform = own.transform or common.transform
        cached = taught and transform.crop == "none" and not transform.flip
        changes |= {"data": self.places.train, "seed": seed, "out": self.places.out / "pretrain" / f"{arm}-{seed}"}
        changes |= {"method": own.method, "teacher": common.teacher if taught else None}
        changes |= {"teacher_cache": self.places.out / "cache" if cached else None}
        return common.model_copy(update=changes)

    def fill_cache(self) -> None:
        """Compute the teacher's features once, apart from training, and keep the minutes that it took."""
        kept = self.places.out / "teacher.json"
        if not kept.is_file():
            taught = [self.pretraining(arm, 0) for arm, own in self.config.arms.items() if own.method is not None]
            cached = next((config for config in taught if config.teacher_cache is not None), None)
            if cached is None:
                return
            spent = cpu_seconds()
            with open_world(cached.device) as world:
                folder, size = scan_folder(self.places.train), cached.encoder.image_size
                assert cached.teacher_cache is not None
                teacher = build_teacher(cached, world.device)
                found = cache_teacher(cached, cached.teacher_cache, teacher, folder, world)
                assert isinstance(found, CachedTeacher)
                found.fill(folder, cached.transform, size, (0, 1), cached.reader_processes(1))
            write_text(kept, json.dumps({"cpu_minutes": (cpu_seconds() - spent) / 60}) + "\n")
        self.teacher_minutes = json.loads(kept.read_text())["cpu_minutes"]

    def encoder(self, arm: str, seed: int) -> Path:
        """The run folder of an arm's encoder: pre-trained, or with random weights as pre-training would begin."""
        config = self.config.pretrain
        if self.config.arms[arm].method is not None:
            pretraining = self.pretraining(arm, seed)
            assert pretraining.out is not None
            run_once(edgemim.pretrain, pretraining.out, pretraining)
            return pretraining.out
        folder = self.places.out / "pretrain" / f"{arm}-{seed}"
        torch.manual_seed(seed)
        preprocessing = Preprocessing(
            image_size=config.encoder.image_size, crop_pct=1.0, mean=config.mean, std=config.std
        )
        facts = {"kind": "encoder", "encoder": config.encoder.model_dump(mode="json")}
        facts["preprocessing"] = preprocessing.model_dump(mode="json")
        save_model(folder / "model", build_encoder(config.encoder).vit.state_dict(), facts)
        return folder

    def probed(self, arm: str, seed: int) -> dict[str, float]:
        """k-NN and linear top-1 in percent of the last block."""
        places, folder = self.places, self.places.out / "probe" / f"{arm}-{seed}"
        changes = {"run": self.encoder(arm, seed), "data": places.labelled, "val": places.val, "out": folder}
        results = run_once(
            edgemim.probe, folder, self.config.probe.model_copy(update={**changes, "probe": "both", "seed": seed})
        )
        block = self.config.pretrain.encoder.depth
        return {name: results[f"{name}_top1_block{block}"] for name in ("knn", "linear")}

    def finetuned(self, arm: str, seed: int, rate: float, *, choosing: bool) -> float:
        """Top-1 in percent on the held-out share of train/ while choosing, else on val/."""
        config = self.config.finetune
        name = f"{arm}-{rate:g}" if choosing else f"{arm}-{seed}"
        folder = self.places.out / ("choose" if choosing else "finetune") / name
        changes = {"data": self.places.labelled, "val": None if choosing else self.places.val, "out": folder}
        changes |= {"init": "scratch", "encoder": self.config.pretrain.encoder, "seed": seed}
        if self.config.arms[arm].method is not None:
            changes["init"] = str(self.encoder(arm, seed))
        changes["base_lr"] = rate * 256 / config.batch_size
        return run_once(edgemim.finetune, folder, config.model_copy(update=changes))["top1"]

    def choice(self, arm: str) -> dict[float, float]:
        """Held-out top-1 in percent of every rate that an arm tried; one more while the best lies at an end."""
        seed, rates = self.config.seeds[0], self.config.rates
        tried = {rate: self.finetuned(arm, seed, rate, choosing=True) for rate in rates}
        factor = rates[1] / rates[0]
        while len(tried) < self.config.most_rates and (chosen := best(tried)) in (min(tried), max(tried)):
            further = float(f"{chosen / factor if chosen == min(tried) else chosen * factor:.3g}")
            tried[further] = self.finetuned(arm, seed, further, choosing=True)
        return dict(sorted(tried.items()))

    def minutes(self, arm: str) -> list[float]:
        """CPU minutes of an arm's pre-trainings that were not stopped in between."""
        files = (self.places.out / "pretrain" / f"{arm}-{seed}" / "cpu.json" for seed in self.config.seeds)
        return [json.loads(file.read_text())["cpu_seconds"] / 60 for file in files if file.is_file()]


def best(tried: dict[float, float]) -> float:
    """The rate with the best held-out accuracy; of equals, the smallest."""
    return min(tried, key=lambda rate: (-tried[rate], rate))


def run_study(study: Study) -> dict[str, Any]:
    """Everything, seed by seed; the table is written after each, so that a stopped study shows what it has."""
    study.fill_cache()
    rows: dict[str, dict[str, Any]] = {arm: {"label": own.label or arm} for arm, own in study.config.arms.items()}
    figures: dict[str, dict[str, list[float]]] = {arm: {key: [] for key in _MEASURES} for arm in rows}
    for seed in study.config.seeds:
        for arm, row in rows.items():
            for name, value in study.probed(arm, seed).items():
                figures[arm][name].append(value)
            if "tried" not in row:
                tried = study.choice(arm)
                row |= {"tried": {f"{rate:g}": top1 for rate, top1 in tried.items()}, "rate": best(tried)}
                row["at_an_end"] = best(tried) in (min(tried), max(tried))
            figures[arm]["finetune"].append(study.finetuned(arm, seed, row["rate"], choosing=False))
        for arm, row in rows.items():
            row |= {"pretrain_cpu_minutes": study.minutes(arm), **figures[arm]}
        write_table(study, rows)
    return rows


def write_table(study: Study, rows: dict[str, dict[str, Any]]) -> None:
    """table.json with every figure, table.md and table.png."""
    out, machine = study.places.out, describe()
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "train_images": len(scan_folder(study.places.train)),
        "labelled_images": len(scan_folder(study.places.labelled)),
        "val_images": len(scan_folder(study.places.val)),
        "threads": torch.get_num_threads(),
        "machine": f"{machine['cpu']}, {machine['usable_cpus']} CPUs usable, torch {torch.__version__}",
        "teacher_cpu_minutes": study.teacher_minutes,
    }
    write_text(out / "table.json", json.dumps({**facts, "arms": rows}, indent=2) + "\n")
    write_text(out / "table.md", markdown(facts, rows))
    save_figure(plot(rows), out / "table.png")


def markdown(facts: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown, its facts below it."""
    lines = [
        "| arm | pre-training, CPU minutes | k-NN | linear probe | fine-tuned | learning rate: held-out top-1 of those tried |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        minutes = f"{statistics.mean(row['pretrain_cpu_minutes']):.1f}" if row["pretrain_cpu_minutes"] else "–"
        tried = ", ".join(f"{rate}: {top1:.1f}" for rate, top1 in row["tried"].items())
        end = " (an end of the list)" if row["at_an_end"] else ""
        cells = [row["label"], minutes, *(spread(row[key]) for key in _MEASURES), f"**{row['rate']:g}**{end}; {tried}"]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = len(next(iter(rows.values()))["finetune"])
    lines += [
        "",
        f"Top-1 in percent on {facts['val_images']} val images, mean ± sample deviation over {seeds} seed(s); "
        f"{facts['train_images']} images of train/, {facts['labelled_images']} of them with labels; {facts['date']}; "
        f"{facts['machine']}, {facts['threads']} thread(s).",
    ]
    if facts["teacher_cpu_minutes"] is not None:
        lines.append(f"The teacher's features took {facts['teacher_cpu_minutes']:.1f} CPU minutes more, once for all.")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean and sample deviation."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def plot(rows: dict[str, dict[str, Any]]) -> Figure:
    """One panel a measure: the mean as a bar an arm, every seed as a dot."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(_MEASURES), sharey=True), _MEASURES.items(), strict=True):
        for index, row in enumerate(rows.values()):
            mean = statistics.mean(row[key])
            axes.bar(index, mean, width=0.7, color=COLOURS[index % len(COLOURS)], alpha=0.75, label=row["label"])
            axes.plot([index] * len(row[key]), row[key], "o", color="#222222", markersize=3.5)
            axes.annotate(f"{mean:.1f}", (index, 0), (0, 4), textcoords="offset points", ha="center", color="white")
        axes.set(title=title, xticks=[])
    figure.axes[0].set_ylabel("top-1 in %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def measure_minutes(study: Study) -> None:
    """Each arm's rate over a short pre-training and the minutes that the whole would take; prints and keeps them."""
    study.fill_cache()
    found = {}
    for arm, own in study.config.arms.items():
        if own.method is None:
            continue
        whole = study.pretraining(arm, 0)
        short = {"out": study.places.out / "rate" / arm, "epochs": study.config.minutes_epochs, "overwrite": True}
        load = LoadMeter()
        rate = edgemim.pretrain(whole.model_copy(update=short))["images_per_s"]
        minutes = whole.epochs * len(scan_folder(study.places.train)) / rate / 60
        found[arm] = {"images_per_s": rate, "minutes": minutes, "foreign_load": load.stop().foreign}
        print(
            f"{arm}: {rate:.0f} images/s, {minutes:.1f} min, others took {found[arm]['foreign_load']:.0%}", flush=True
        )
    found["threads"] = torch.get_num_threads()
    write_text(study.places.out / "minutes.json", json.dumps(found, indent=2) + "\n")


def main(config: ArmsConfig) -> None:
    """Run the study, or what is missing of it, and print its table. Raises UserError, and what the verbs raise."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    lock = FolderLock(config.out)
    try:
        study = Study(config)
        if config.minutes:
            measure_minutes(study)
            return
        with RunRecord("pretraining_arms", config.out, config) as record:
            record.results.update(run_study(study))
        print((config.out / "table.md").read_text())
    finally:
        lock.release()


if __name__ == "__main__":
    try:
        main(parse(ArmsConfig, sys.argv[1:], prog="pretraining_arms.py"))
    except EdgemimError as error:
        print(f"pretraining_arms.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
