"""The script of the arms, on a few real crops: its table, what it skips, resumes and refuses, and who sees val."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import edgemim  # noqa: E402
from benchmarks.pretraining_arms import (  # noqa: E402
    ArmConfig,
    ArmsConfig,
    Places,
    Study,
    best,
    main,
    markdown,
    reduced,
)
from edgemim.commands.finetune import FinetuneConfig  # noqa: E402
from edgemim.config import load_yaml, to_yaml  # noqa: E402
from edgemim.data.folders import scan_folder  # noqa: E402
from edgemim.data.transforms import FinetuneTransform, PretrainTransform  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.methods import FeatureDistillConfig, MaeConfig  # noqa: E402
from edgemim.models.sizes import VitConfig  # noqa: E402
from edgemim.teachers import CheckpointTeacher  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "pretraining_arms.py"
NANO = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=32)
SMALL: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 16}


@pytest.fixture(scope="module")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 20 and val/ with 10 crops of each of four photos."""
    root = tmp_path_factory.mktemp("arms") / "data"
    for photo in sorted(photos.iterdir()):
        for place, image in enumerate(sorted(photo.iterdir())):
            target = root / ("train" if place < 20 else "val") / photo.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
    return root


def small_config(data: Path, out: Path, **changes: Any) -> ArmsConfig:
    """Three arms of a nano encoder; the teacher's weights are random, but the same for all seeds."""
    settings: dict[str, Any] = {
        "data": data,
        "out": out,
        "seeds": (0, 1),
        "arms": {
            "scratch": ArmConfig(label="from scratch"),
            "mae": ArmConfig(label="MAE", method=MaeConfig(mask_ratio=0.5), epochs=3),
            "both": ArmConfig(method=FeatureDistillConfig()),
        },
        "pretrain": edgemim.PretrainConfig(
            encoder=NANO,
            teacher=CheckpointTeacher(path=random_teacher(out), model="resnet10t"),
            transform=PretrainTransform(crop="none", flip=False),
            epochs=2,
            picture_every=0,
            knn_every=0,
            **SMALL,
        ),
        "finetune": FinetuneConfig(
            transform=FinetuneTransform(crop_scale=(0.5, 1.0), rand_augment=""),
            epochs=2,
            warmup_epochs=0,
            evaluate_every=0,
            val_share=0.25,
            **SMALL,
        ),
        "probe": edgemim.ProbeConfig(seeds=1, epochs=5, rates=(1e-2, 3e-2, 0.1), device="cpu"),
        "rates": (1e-3, 4e-3),
        "most_rates": 3,
        "threads": 1,
    }
    return ArmsConfig(**{**settings, **changes})


def random_teacher(out: Path) -> Path:
    """A file of weights beside a study."""
    file = out.parent / "teacher.safetensors"
    if not file.is_file():
        torch.manual_seed(0)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(timm.create_model("resnet10t").state_dict(), file)
    return file


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> ArmsConfig:
    """A study that ran to its end."""
    config = small_config(data, tmp_path_factory.mktemp("study") / "out", labelled_per_class=12)
    main(config)
    return config


def table(config: ArmsConfig) -> dict[str, Any]:
    return json.loads((config.out / "table.json").read_text())


def figures(config: ArmsConfig) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {
        arm: {key: value for key, value in row.items() if "minutes" not in key}
        for arm, row in table(config)["arms"].items()
    }


def results_of(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done"
    return record["results"]


def forbid(monkeypatch: pytest.MonkeyPatch, *verbs: str) -> None:
    def refuse(config: Any) -> Any:
        raise AssertionError(f"{config.out} was run again")

    for verb in verbs:
        monkeypatch.setattr(edgemim, verb, refuse, raising=False)


def test_the_table_holds_what_the_runs_measured(finished: ArmsConfig) -> None:
    found = table(finished)
    assert (found["train_images"], found["labelled_images"], found["val_images"]) == (80, 48, 40)
    assert list(found["arms"]) == ["scratch", "mae", "both"]
    for arm, row in found["arms"].items():
        for place, seed in enumerate((0, 1)):
            probed = results_of(finished.out / "probe" / f"{arm}-{seed}")
            assert row["knn"][place] == probed["knn_top1_block2"]
            assert row["linear"][place] == probed["linear_top1_block2"]
            final = results_of(finished.out / "finetune" / f"{arm}-{seed}")
            assert row["finetune"][place] == final["top1"]
            assert final["evaluated_images"] == 40
        tried = {float(rate): top1 for rate, top1 in row["tried"].items()}
        assert {1e-3, 4e-3} <= tried.keys()
        assert tried[row["rate"]] == max(tried.values())
        for rate, top1 in tried.items():
            choosing = results_of(finished.out / "choose" / f"{arm}-{rate:g}")
            assert (choosing["top1"], choosing["evaluated_images"]) == (top1, 12)
        assert len(row["pretrain_cpu_minutes"]) == (0 if arm == "scratch" else 2)


def test_the_page_shows_mean_and_deviation(finished: ArmsConfig) -> None:
    page, rows = (finished.out / "table.md").read_text(), table(finished)["arms"]
    for row in rows.values():
        mean, deviation = statistics.mean(row["finetune"]), statistics.stdev(row["finetune"])
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {row['label']} |"))
        assert f"| {mean:.1f} ± {deviation:.1f} |" in line
        assert f"**{row['rate']:g}**" in line
    assert "2 seed(s)" in page
    assert (finished.out / "table.png").stat().st_size > 5000


def test_the_teacher_is_asked_once_for_each_image(finished: ArmsConfig) -> None:
    for seed in (0, 1):
        cache = results_of(finished.out / "pretrain" / f"both-{seed}")["teacher_cache"]
        assert (cache["images"], cache["filled"], cache["computed"]) == (80, 80, 0)
    assert table(finished)["teacher_cpu_minutes"] > 0


def test_each_seed_begins_elsewhere_and_arms_differ_as_told(finished: ArmsConfig) -> None:
    def steps(arm: str, seed: int) -> int:
        return results_of(finished.out / "pretrain" / f"{arm}-{seed}")["steps"]

    assert steps("mae", 0) == 3 * 5
    assert steps("both", 1) == 2 * 5
    weights = [
        edgemim.load_encoder(finished.out / "pretrain" / f"{arm}-{seed}").state_dict()["vit.patch_embed.proj.weight"]
        for arm in ("scratch", "mae", "both")
        for seed in (0, 1)
    ]
    assert not any(torch.equal(one, other) for i, one in enumerate(weights) for other in weights[:i])


def test_a_finished_study_runs_nothing_again(finished: ArmsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = table(finished)
    forbid(monkeypatch, "pretrain", "probe", "finetune")
    main(finished)
    assert table(finished) == before


def test_a_killed_study_goes_on_and_ends_alike(finished: ArmsConfig, tmp_path: Path) -> None:
    """Killed in the middle of the first fine-tuning of MAE's arm; then every figure is that of the undisturbed study."""
    config = finished.model_copy(update={"out": tmp_path / "out", "threads": 1})
    file = tmp_path / "study.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, str(SCRIPT), "--config", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    marker = config.out / "choose" / "mae-0.001" / "metrics.jsonl"
    wait_until(lambda: marker.is_file() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    kept = {path: path.stat().st_mtime_ns for path in config.out.glob("pretrain/*/run.json")}
    assert kept
    main(config)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert figures(config) == figures(finished)


def wait_until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_other_settings_are_refused_and_nothing_is_lost(finished: ArmsConfig) -> None:
    longer = finished.finetune.model_copy(update={"epochs": 5.0})
    with pytest.raises(
        UserError, match=r"choose/scratch-0\.001 holds a run with other settings \(epochs: 2\.0 -> 5\.0"
    ):
        main(finished.model_copy(update={"finetune": longer}))
    assert len(list(finished.out.glob("finetune/*/run.json"))) == 6


def test_a_rate_is_chosen_without_val(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[FinetuneConfig] = []

    def note(config: FinetuneConfig) -> dict[str, float]:
        assert config.out is not None
        config.out.mkdir(parents=True)
        asked.append(config)
        return {"top1": 1.0}

    monkeypatch.setattr(edgemim, "finetune", note, raising=False)
    study = Study(small_config(data, tmp_path / "out"))
    study.finetuned("scratch", 0, 2e-3, choosing=True)
    study.finetuned("scratch", 1, 2e-3, choosing=False)
    choosing, final = asked
    assert (choosing.data, choosing.val, choosing.val_share) == (data / "train", None, 0.25)
    assert (final.data, final.val, final.seed) == (data / "train", data / "val", 1)
    assert choosing.peak_lr == final.peak_lr == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("peak", "tried", "chosen"),
    [(1e-3, (1e-3, 2e-3, 4e-3), 2e-3), (1e-2, (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), 8e-3), (1e-4, None, 2.5e-4)],
)
def test_a_best_rate_at_an_end_tries_further(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    peak: float,
    tried: tuple[float, ...] | None,
    chosen: float,
) -> None:
    """Held-out accuracy falls with the distance from a peak; the search follows it, and ends at `most_rates`."""
    study = Study(small_config(data, tmp_path / "out", rates=(1e-3, 2e-3, 4e-3), most_rates=5))
    distance = {1e-3: 2e-3, 1e-2: 8e-3, 1e-4: 1e-4}[peak]
    monkeypatch.setattr(
        Study,
        "finetuned",
        lambda self, arm, seed, rate, *, choosing: 90 - abs(torch.tensor(rate / distance).log().item()),
    )
    found = study.choice("mae")
    assert tuple(found) == (tried or (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3))
    assert best(found) == chosen


def test_equal_rates_give_the_smallest() -> None:
    assert best({4e-3: 60.0, 1e-3: 60.0, 2e-3: 50.0}) == 1e-3


def test_a_reduced_folder_is_balanced_and_the_same_each_time(data: Path, tmp_path: Path) -> None:
    first, second = (reduced(data / "train", 7, tmp_path / name) for name in "ab")
    names = [sorted(path.relative_to(root) for path in root.rglob("*.*g")) for root in (first, second)]
    assert names[0] == names[1]
    images = scan_folder(first)
    assert len(images) == 28
    assert [int((images.labels == label).sum()) for label in range(4)] == [7, 7, 7, 7]
    assert images.classes == scan_folder(data / "train").classes
    assert reduced(data / "train", None, tmp_path / "c") == data / "train"


def test_a_folder_without_val_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no train/ and val/"):
        Places.of(small_config(data / "train", tmp_path / "out"))
    with pytest.raises(UserError, match="give --data DIR"):
        Places.of(ArmsConfig(out=tmp_path / "out"))
    with pytest.raises(ValueError, match="must be positive and rise"):
        ArmsConfig(rates=(2e-3, 1e-3))


def test_minutes_come_from_the_rate_of_the_loop(data: Path, tmp_path: Path) -> None:
    config = small_config(data, tmp_path / "out", minutes=True, minutes_epochs=1)
    main(config)
    found = json.loads((config.out / "minutes.json").read_text())
    assert set(found) == {"mae", "both", "threads"}
    assert found["mae"]["minutes"] == pytest.approx(3 * 80 / found["mae"]["images_per_s"] / 60)
    assert not (config.out / "table.json").exists()


def test_one_seed_has_no_deviation() -> None:
    row: dict[str, Any] = {
        "label": "a",
        "pretrain_cpu_minutes": [],
        "tried": {"0.001": 3.0},
        "rate": 1e-3,
        "at_an_end": True,
    }
    facts = dict.fromkeys(("val_images", "train_images", "labelled_images", "date", "machine", "threads"), 1)
    row |= {"knn": [1.0], "linear": [1.0], "finetune": [5.0]}
    page = markdown({**facts, "teacher_cpu_minutes": None}, {"a": row})
    assert "| a | – | 1.0 | 1.0 | 5.0 | **0.001** (an end of the list); 0.001: 3.0 |" in page


@pytest.mark.parametrize("name", ["trashnet", "tiny_imagenet100"])
def test_the_recipes_of_the_sets_are_those_of_their_study(name: str) -> None:
    study = load_yaml(REPOSITORY / "configs" / "study" / f"{name}_arms.yaml", ArmsConfig)
    written = load_yaml(REPOSITORY / "configs" / "finetune" / f"{name}_micro.yaml", FinetuneConfig).model_dump()
    running = study.finetune.model_dump()
    own = {"base_lr", "encoder", "device", "workers", "val_share"}
    assert {key: written[key] for key in written if key not in own} == {
        key: running[key] for key in running if key not in own
    }
    assert written["encoder"] == study.pretrain.encoder.model_dump()
    assert list(study.arms) == ["scratch", "mae", "distill", "both"]
    assert len(study.seeds) >= 3
    assert len(study.rates) >= 3
