"""Scoring other trackers' results: equal to unmodified PyTracking on LaSOT, and every fault in a sentence."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemim.cli import main
from edgemim.commands.track import TrackConfig, track
from edgemim.commands.tracking.score import read_truths, tracker_names
from edgemim.errors import UserError

FRAMES = 12


def dataset(root: Path, names: tuple[str, ...] = ("cat-1", "cat-2", "dog-1")) -> Path:
    """LaSOT's toolkit annotations of targets that move to the right; the fourth frame is absent."""
    (root / "absent").mkdir(parents=True)
    for name in names:
        rows = [[10 + 3 * i, 20, 30, 40] for i in range(FRAMES)]
        (root / f"{name}.txt").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
        (root / "absent" / f"{name}.txt").write_text("".join(f"{int(i == 3)}\n" for i in range(FRAMES)))
    return root


def results(
    root: Path, offset: float, delimiter: str = "\t", names: tuple[str, ...] = ("cat-1", "cat-2", "dog-1")
) -> Path:
    """Predictions that are `offset` pixels too far to the right."""
    root.mkdir(parents=True)
    for name in names:
        rows = [[10 + 3 * i + offset, 20, 30, 40] for i in range(FRAMES)]
        (root / f"{name}.txt").write_text("".join(delimiter.join(map(str, row)) + "\n" for row in rows))
    return root


def run(tmp_path: Path, *score: Path, **options: Any) -> dict[str, Any]:
    """Score into tmp_path/out."""
    annotations = options.pop("annotations", tmp_path / "lasot")
    return track(
        TrackConfig.model_validate(
            {"score": score, "dataset": "lasot", "annotations": annotations, "out": tmp_path / "out", **options}
        )
    )


def test_scores_tables_plots_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path / "lasot")
    trackers = (results(tmp_path / "good", 0.0), results(tmp_path / "far", 25.0, ","))
    found = run(tmp_path, *trackers, protocol="lasot")
    # Eleven of twelve frames are present and exact; the fourth misses.
    assert found["overall"]["good"]["auc"] == pytest.approx(100 * 20 / 21 * 11 / 12)
    assert found["overall"]["good"]["precision"] == pytest.approx(100 * 11 / 12)
    assert found["overall"]["far"]["precision"] == pytest.approx(100 / 12)  # the first frame is given
    out = tmp_path / "out"
    stored = json.loads((out / "scores.json").read_text())
    assert stored["per_sequence"]["dog-1"]["good"] == found["per_sequence"]["dog-1"]["good"]
    assert stored["per_sequence"]["dog-1"]["frames"] == FRAMES
    rows = list(csv.DictReader((out / "per_sequence.csv").open()))
    assert len(rows) == 6 and {row["tracker"] for row in rows} == {"good", "far"}
    assert float(rows[0]["auc"]) == pytest.approx(found["overall"]["good"]["auc"], abs=1e-3)
    for name in ("success", "precision", "norm_precision"):
        assert (out / f"{name}.png").stat().st_size > 5000
    page = (out / "report.html").read_text()
    assert "dog-1" in page and "calc_seq_err_robust.m" in page and page.count("data:image/png") == 3
    printed = capsys.readouterr().out
    assert "87.30" in printed and "next: edgemim track" in printed
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "done" and record["results"]["protocol"] == "lasot"


def test_published_results_equal_pytracking(shared: Path, tmp_path: Path) -> None:
    """All 280 sequences of two trackers, from the archives, to 0.01 point overall and each."""
    folder = shared / "tracking"
    names = ("ATOM", "SiamRPN++")
    found = run(
        tmp_path,
        *(folder / "results" / f"lasot_{name}.tar.gz" for name in names),
        annotations=folder / "annotations" / "lasot_test_annos.tar.xz",
        protocol="pytracking",
    )
    golden = json.loads((folder / "results" / "lasot_golden.json").read_text())["results"]
    assert found["sequences"] == 280
    for name in names:
        for key in ("auc", "op50", "op75", "precision", "norm_precision"):
            assert found["overall"][name][key] == pytest.approx(golden[name][key], abs=0.01), (name, key)
        for sequence, expected in golden[name]["per_sequence_auc_p_np"].items():
            ours = found["per_sequence"][sequence][name]
            assert [ours[key] for key in ("auc", "precision", "norm_precision")] == pytest.approx(expected, abs=0.01)


def test_results_on_otbs_annotations(shared: Path, tmp_path: Path) -> None:
    """OTB-100 from its one file; a tracker that repeats the first box, named as the GOT-10k toolkit names sequences."""
    annotations = shared / "tracking" / "annotations" / "OTB2015.json"
    truths, faults = read_truths("otb", annotations)
    assert len(truths) == 100 and not faults
    (tmp_path / "still").mkdir()
    for truth in truths:
        row = "\t".join(str(int(value)) for value in truth.boxes[0])
        (tmp_path / "still" / f"{truth.name.replace('_', '.')}.txt").write_text(f"{row}\n" * len(truth))
    found = run(tmp_path, tmp_path / "still", annotations=annotations, dataset="otb")
    assert found["protocol"] == "pytracking" and found["sequences"] == 100
    crossing = found["per_sequence"]["crossing"]["still"]
    boxes = next(truth.boxes for truth in truths if truth.name == "crossing")
    shift = np.linalg.norm((boxes - boxes[0])[:, :2] + (boxes - boxes[0])[:, 2:] / 2, axis=1)
    assert crossing["precision"] == pytest.approx(100 * (shift <= 20).mean())
    assert 5 < found["overall"]["still"]["auc"] < 30


def test_a_folder_that_is_half_written_is_refused_and_can_be_scored_without_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path / "lasot")
    whole, part = results(tmp_path / "whole", 0.0), results(tmp_path / "part", 0.0, names=("cat-1", "dog-1"))
    half = part / "dog-1.txt"
    half.write_text("".join(half.read_text().splitlines(True)[:5]))
    with pytest.raises(UserError) as caught:
        run(tmp_path, whole, part)
    sentence = str(caught.value)
    assert "2 of 3 sequences cannot be scored (cat-2, dog-1)" in sentence
    assert "no results in" in sentence and "--skip-missing scores the others" in sentence
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_code"] == 2
    found = run(tmp_path, whole, part, skip_missing=True, overwrite=True)
    assert list(found["per_sequence"]) == ["cat-1"]  # for both trackers alike
    assert "5 predicted boxes for 12 annotated frames" in found["left_out"]["dog-1"]
    assert "left out for every tracker: 2 of 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3\n", r"cat-1\.txt, line 1: 3 numbers, expected 4"),
        ("a,b,c,d\n", "is not a row of numbers"),
        ("", "is empty"),
        ("nan,nan,nan,nan\n" * FRAMES, "score with --protocol lasot or clean"),
    ],
)
def test_results_that_are_no_boxes(tmp_path: Path, text: str, words: str) -> None:
    dataset(tmp_path / "lasot", ("cat-1",))
    results(tmp_path / "bad", 0.0, names=("cat-1",))
    (tmp_path / "bad" / "cat-1.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        run(tmp_path, tmp_path / "bad", protocol="pytracking")


def test_a_broken_annotation_is_named_with_its_sequence(tmp_path: Path) -> None:
    dataset(tmp_path / "lasot", ("cat-1", "cat-2"))
    (tmp_path / "lasot" / "absent" / "cat-2.txt").write_text("0\n")
    tracker = results(tmp_path / "good", 0.0)
    with pytest.raises(UserError, match="sequence cat-2: 1 flags of absence for 12 boxes"):
        run(tmp_path, tracker)
    (tmp_path / "lasot" / "cat-1.txt").write_text("1,2,3,4\n")
    (tmp_path / "lasot" / "absent" / "cat-1.txt").unlink()
    with pytest.raises(
        UserError, match="no sequence can be scored; the first fault: sequence cat-1: the annotation is its"
    ):
        run(tmp_path, tracker, skip_missing=True, overwrite=True)


def test_sequences_by_name_and_by_split(tmp_path: Path) -> None:
    dataset(tmp_path / "lasot")
    tracker = results(tmp_path / "good", 0.0)
    assert run(tmp_path, tracker, sequences=("cat-2",))["sequences"] == 1
    (tmp_path / "lasot" / "testing_set.txt").write_text("cat-1\ndog-1\n")
    assert list(run(tmp_path, tracker, split="test", overwrite=True)["per_sequence"]) == ["cat-1", "dog-1"]
    with pytest.raises(UserError, match="no sequence 'cat-3'"):
        run(tmp_path, tracker, sequences=("cat-3",), overwrite=True)


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    dataset(tmp_path / "lasot")
    tracker = results(tmp_path / "good", 0.0)
    with pytest.raises(UserError, match="needs --dataset"):
        track(TrackConfig(score=(tracker,)))
    with pytest.raises(UserError, match="and --annotations"):
        track(TrackConfig(score=(tracker,), dataset="lasot"))
    with pytest.raises(UserError, match="not of clean"):
        run(tmp_path, tracker, protocol="clean", exclude_invalid_frames=True)
    only_valid = run(tmp_path, tracker, protocol="pytracking", exclude_invalid_frames=True)
    assert only_valid["overall"]["good"]["auc"] == pytest.approx(2000 / 21)


def test_names_of_trackers(tmp_path: Path) -> None:
    first, second = results(tmp_path / "a" / "results", 0.0), results(tmp_path / "b" / "results", 1.0)
    assert tracker_names([first, second], [first, second]) == ["a/results", "b/results"]
    assert tracker_names([first, first], [first, first]) == ["a/results (1)", "a/results (2)"]
    dataset(tmp_path / "lasot")
    with tarfile.open(tmp_path / "mine.tar.gz", "w:gz") as file:
        for path in first.iterdir():
            file.add(path, path.name)
    assert list(run(tmp_path, tmp_path / "mine.tar.gz", first)["overall"]) == ["mine", "results"]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path / "lasot")
    tracker = results(tmp_path / "good", 0.0)
    words = ["track", "--score", str(tracker), "--dataset", "lasot", "--annotations", str(tmp_path / "lasot")]
    assert main([*words, "--protocol", "clean", "--out", str(tmp_path / "out")]) == 0
    assert "100.00" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
