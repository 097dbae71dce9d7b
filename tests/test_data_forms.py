"""The verbs on every form of data: a whole chain from shards to a measured classifier, exact resume, and bad input."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from fault_harness import Launcher, Run
from packed_files import dataset_of, samples_of, write_table, write_tar

import edgemim
from edgemim.cli import main
from edgemim.data.labelled import LabelledData
from edgemim.models.weights import read_tensors
from edgemim.tasks import load_task

SMALL = {"batch_size": 24, "workers": 0, "warmup_epochs": 0, "epochs": 1, "log_every": 1, "encoder": "vit_nano"}
PRETRAIN = {**SMALL, "picture_every": 0, "knn_every": 1}
FINETUNE = {**SMALL, "init": "scratch", "evaluate_every": 0}


@pytest.fixture(scope="module")
def forms(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set with splits in four forms; its training part lacks most of one class."""
    root = tmp_path_factory.mktemp("forms")
    for number, path in enumerate(sorted(photos.rglob("*.*"))):
        split = "val" if number % 3 == 0 else "train"
        if split == "val" or path.parent.name != "rocket" or number % 5 == 0:
            target = root / "folder" / split / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    lines = ["path,label,split"]
    for path in sorted((root / "folder").rglob("*.*")):
        lines.append(f"{path.relative_to(root)},{path.parent.name},{path.parent.parent.name}")
    (root / "set.csv").write_text("\n".join(lines))
    for split in ("train", "val"):
        write_tar(root / "shards" / f"{split}-000.tar", samples_of(root / "folder" / split, "name"))
    forms = {"folder": root / "folder", "csv": root / "set.csv", "tar": root / "shards"}
    pytest.importorskip("datasets")
    (root / "hub").mkdir()
    for split in ("train", "val"):
        dataset_of(root / "folder" / split).to_parquet(root / "hub" / f"{split}-0.parquet", batch_size=10)
    return {**forms, "hf": root / "hub"}


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in read_tensors(run / "model" / "model.safetensors").items()}


def test_training_is_the_same_to_the_bit_on_every_form(forms: dict[str, Path], tmp_path: Path) -> None:
    """The list of images is the same, and so is what is drawn from it."""
    found = {}
    for form, path in forms.items():
        run = tmp_path / form
        options = {"data": path, "out": run, "class_balanced": True, "workers": 2 if form == "tar" else 0}
        edgemim.finetune(edgemim.FinetuneConfig.model_validate({**FINETUNE, **options}))
        found[form] = (weights(run), json.loads((run / "run.json").read_text())["results"]["top1"])
    assert all(result == found["folder"] for result in found.values())
    plain = tmp_path / "plain"
    edgemim.finetune(edgemim.FinetuneConfig.model_validate({**FINETUNE, "data": forms["csv"], "out": plain}))
    assert weights(plain) != found["csv"][0]


def test_from_shards_to_a_measured_classifier(forms: dict[str, Path], tmp_path: Path) -> None:
    pre, fine = tmp_path / "pre", tmp_path / "fine"
    results = edgemim.pretrain(edgemim.PretrainConfig.model_validate({**PRETRAIN, "data": forms["tar"], "out": pre}))
    assert 0 <= results["knn_top1"] <= 100  # on the val shards
    names = tmp_path / "classes.txt"
    names.write_text("rocket\ncoffee\nchelsea\nastronaut\n")
    probed = edgemim.probe(edgemim.ProbeConfig(run=pre, data=forms["hf"], classes=names))
    val = LabelledData.open(forms["hf"]).val
    assert (probed["queries"], probed["held_out"]) == (len(val), f"arrow {forms['hf']}")
    options = {"data": forms["csv"], "init": str(pre), "out": fine, "classes": names}
    trained = edgemim.finetune(edgemim.FinetuneConfig.model_validate({**FINETUNE, **options}))
    names.unlink()  # the model knows its classes
    task = load_task(fine)
    assert task.labels == ("rocket", "coffee", "chelsea", "astronaut")
    again = edgemim.evaluate(edgemim.EvaluateConfig(run=fine))
    assert again["confusion"] == trained["confusion"]
    for form in ("folder", "tar", "hf"):
        other = edgemim.evaluate(edgemim.EvaluateConfig(run=fine, data=forms[form], out=tmp_path / form))
        assert other["confusion"] == trained["confusion"]


def test_a_killed_run_on_shards_ends_in_the_same_weights(forms: dict[str, Path], tmp_path: Path) -> None:
    """Balanced over classes, on two readers, killed once; and undisturbed with another number of readers."""
    launcher = Launcher(tmp_path)
    runs = [Run(tmp_path / name) for name in ("whole", "killed")]
    settings = (
        "finetune --init scratch --encoder vit_nano --batch-size 24 --epochs 30 --warmup-epochs 1 --evaluate-every 0 "
        f"--class-balanced --checkpoint-epochs 2 --log-every 1 --device cpu --data {forms['tar']}"
    ).split()
    words = [
        [*settings, "--workers", workers, "--out", str(run.folder)] for run, workers in zip(runs, "02", strict=True)
    ]
    try:
        assert launcher.run(words[0]).code == 0
        job = launcher.start(words[1])
        job.wait_until(lambda: runs[1].saved_step > 10, "a checkpoint")
        job.kill()
        assert runs[1].saved_step < runs[0].saved_step
        ended = launcher.run([*words[1], "--resume"])
        assert ended.code == 0 and "resuming at" in ended.output, ended.output
    finally:
        launcher.clean_up()
    assert runs[0].results == runs[1].results


def test_what_balanced_training_shows(forms: dict[str, Path]) -> None:
    """Counted over the stream that finetune reads: four classes alike, though one has a fifth of the images."""
    from edgemim.data.loader import build_loader
    from edgemim.data.transforms import FinetuneTransform

    train = LabelledData.open(forms["tar"]).train
    sizes = np.bincount(train.labels)
    assert sizes.min() * 4 <= sizes.max()
    transform = FinetuneTransform(rand_augment="").build(16)
    for balanced in (False, True):
        shown: Counter[int] = Counter()
        stream = build_loader(train, transform, batch_size=len(train), seed=0, total_steps=3, class_balanced=balanced)
        for batch in stream:
            shown.update(batch.labels.tolist())
        assert (max(shown.values()) - min(shown.values()) <= 3) is balanced


def faulty(forms: dict[str, Path], root: Path) -> list[tuple[list[str], str]]:
    """Words after the verb, and what the sentence names."""
    folder = forms["folder"] / "train"
    table = write_table(folder, folder / "t.csv")
    lines = table.read_text().splitlines()
    cases = []

    def csv(name: str, rows: list[str], named: str) -> None:
        (folder / name).write_text("\n".join(rows))
        cases.append(([str(folder / name)], named))

    csv("gone.csv", [*lines, "none.png,x"], f"gone.csv, line {len(lines) + 1}: no file 'none.png'")
    csv("bare.csv", [*lines[:3], lines[3].partition(",")[0] + ","], "bare.csv, line 4: no label")
    csv("wide.csv", [*lines[:2], lines[2] + ",x"], "wide.csv, line 3: 3 columns, not 2")
    csv("split.csv", ["path,label,split", lines[1] + ",oops"], "split.csv, line 2: unknown split 'oops'")
    csv("one.csv", [line for line in lines if "coffee" in line], "one class, 'coffee'")
    (root / "few.txt").write_text("astronaut\nchelsea\n")
    cases.append(([str(table), "--classes", str(root / "few.txt")], "few.txt; add it there"))
    (root / "many.txt").write_text("astronaut\nchelsea\ncoffee\nrocket\nunicorn\n")
    cases.append(([str(folder), "--classes", str(root / "many.txt")], "class 'unicorn' has no image"))
    bare = write_tar(root / "bare.tar", samples_of(folder.parent / "val", "none"))
    cases.append(([str(bare)], "bare.tar:astronaut-00.png has no label"))
    cut = write_tar(root / "cut.tar", samples_of(folder.parent / "val"))
    cut.write_bytes(cut.read_bytes()[:40_000])
    cases.append(([str(cut)], "cut.tar ends within '"))
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "label": [0]}), root / "text.parquet")
    cases.append(([str(root / "text.parquet")], "no column of images (it has text, label)"))
    return cases


def test_bad_input_is_one_sentence_and_touches_nothing(
    forms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kept"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for words, named in faulty(forms, tmp_path):
        code = main(["finetune", "--init", "scratch", "--encoder", "vit_nano", "--out", str(out), "--data", *words])
        error = capsys.readouterr().err
        assert code == 2, (words, error)
        assert named in error and error.count("\n") == 1, (named, error)
        assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_options_of_another_task_are_refused(forms: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--class-balanced"], ["--classes", "c.txt"]):
        assert main(["finetune", "--task", "segmentation", "--data", str(forms["folder"]), *words]) == 2
        assert f"{words[0]} is for --task classification" in capsys.readouterr().err
