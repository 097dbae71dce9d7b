"""`edgemim track --dataset` on a small tracker: results in two formats, scores, pictures; resumed, broken off, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_tracker import moving_target, tiny_tracker

from edgemim.cli import main
from edgemim.commands.track import TrackConfig, track
from edgemim.commands.tracking import evaluate as module
from edgemim.edge.tracking.results import ResultsFolder
from edgemim.errors import Interrupted, UserError

FRAMES = 12
NAME = "tiny-tracker-onnx-fp32"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tracker(tmp_path_factory.mktemp("tracker")).folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sequences of a moving target in the plain layout."""
    root = tmp_path_factory.mktemp("sequences")
    images, boxes = moving_target(FRAMES)
    for name in ("a", "b", "c"):
        (root / name / "img").mkdir(parents=True)
        for number, image in enumerate(images, start=1):
            Image.fromarray(image).save(root / name / "img" / f"{number}.png")
        (root / name / "groundtruth.txt").write_text("".join(",".join(map(str, box)) + "\n" for box in boxes))
    return root


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "data"))


def run(artifact: Path, data: Path, out: Path, **options: Any) -> dict[str, Any]:
    """One evaluation on one thread."""
    settings = {"artifact": artifact, "dataset": "folder", "data": data, "out": out, "threads": 1, **options}
    return track(TrackConfig.model_validate(settings))


def test_results_scores_and_pictures(artifact: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(artifact, data, out, baseline=True, filmstrip=4)
    assert found["sequences"] == 3 and found["protocol"] == "clean" and found["update_fps"] > 1
    assert found["trackers"][NAME]["auc"] > 60 > 30 > found["trackers"]["no-motion"]["auc"]
    boxes = ResultsFolder(out / "pytracking" / NAME).read("b")
    np.testing.assert_allclose(ResultsFolder(out / "got10k" / NAME).read("b"), boxes, atol=1e-3)
    assert len(np.loadtxt(out / "pytracking" / NAME / "b_time.txt")) == len(boxes) == FRAMES
    assert {path.name for path in (out / "filmstrips").iterdir()} == {"a.png", "b.png", "c.png"}
    assert (out / "report.html").read_text().count("data:image/png") == 3 + 3
    # What was written can be scored by itself, to the same figures.
    again = track(
        TrackConfig(
            score=(out / "pytracking" / NAME, out / "got10k" / NAME),
            dataset="folder",
            annotations=data,
            out=tmp_path / "again",
        )
    )
    for values in again["overall"].values():
        assert values["auc"] == pytest.approx(found["trackers"][NAME]["auc"], abs=0.01)


def test_whole_pixels_as_pytracking_writes_them(artifact: Path, data: Path, tmp_path: Path) -> None:
    run(artifact, data, tmp_path / "out", sequences=("a",), pytracking_int=True, filmstrip=0)
    text = (tmp_path / "out" / "pytracking" / NAME / "a.txt").read_text()
    assert "." not in text and text.count("\t") == 3 * FRAMES
    assert not (tmp_path / "out" / "filmstrips").exists()


def test_resume_keeps_finished_sequences_and_redoes_half_written_ones(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(artifact, data, out, filmstrip=0)
    files = {name: out / "pytracking" / NAME / f"{name}.txt" for name in "abc"}
    whole = files["b"].read_text()
    kept = "\n".join(["1\t2\t3\t4"] * FRAMES) + "\n"
    files["a"].write_text(kept)  # finished, so it is believed
    files["b"].write_text(whole[: len(whole) // 2])
    files["c"].unlink()
    run(artifact, data, out, filmstrip=0, resume=True)
    assert files["a"].read_text() == kept and files["b"].read_text() == files["c"].read_text() == whole
    assert "1 of 3 sequences are finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not empty; give another --out, --resume to go on"):
        run(artifact, data, out)
    with pytest.raises(UserError, match="was made with pytracking-int False, not True"):
        run(artifact, data, out, resume=True, pytracking_int=True)


def test_faults_of_one_sequence_are_named_and_the_others_are_done(artifact: Path, data: Path, tmp_path: Path) -> None:
    rows = (data / "b" / "groundtruth.txt").read_text().splitlines(True)
    (data / "b" / "groundtruth.txt").write_text("".join(rows[:-2]))
    (data / "c" / "img" / "6.png").write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        run(artifact, data, out, filmstrip=0)
    assert "2 sequences could not be tracked (b, c)" in str(caught.value)
    assert "the annotation is shorter than the sequence, 10 boxes" in str(caught.value)
    assert f"the others (1) are done: mend it and go on with --resume --out {out}" in str(caught.value)
    record = json.loads((out / "run.json").read_text())
    assert record["exit_code"] == 2 and record["results"]["trackers"][NAME]["auc"] > 60
    assert "frame 6 of 12" in record["results"]["failed"]["c"]
    (data / "b" / "groundtruth.txt").write_text("".join(rows))
    found = run(artifact, data, out, filmstrip=0, resume=True, skip_missing=True)  # c is still broken
    assert found["sequences"] == 2 and json.loads((out / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize("first", ["nan,nan,nan,nan", "5,5,0,20", "1,2,3"])
def test_a_first_box_that_is_none(artifact: Path, data: Path, tmp_path: Path, first: str) -> None:
    rows = (data / "a" / "groundtruth.txt").read_text().splitlines(True)
    (data / "a" / "groundtruth.txt").write_text("".join([first + "\n", *rows[1:]]))
    with pytest.raises(UserError, match=r"no sequence can be tracked; the first fault: sequence a: "):
        run(artifact, data, tmp_path / "out", sequences=("a",))
    assert not (tmp_path / "out").exists()


def test_a_starting_box_alone_is_tracked_and_not_scored(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (data / "a" / "groundtruth.txt").read_text().splitlines(True)
    (data / "a" / "groundtruth.txt").write_text(rows[0])
    run(artifact, data, tmp_path / "out", sequences=("a",))
    assert "nothing to score" in capsys.readouterr().out
    assert len(ResultsFolder(tmp_path / "out" / "got10k" / NAME).read("a")) == FRAMES


def test_an_interruption_keeps_what_is_finished(
    artifact: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.run_passes

    def broken_off(source: Any, truths: Any, target: Any, **options: Any) -> dict[str, str]:
        real(source, truths[:2], target, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_passes", broken_off)
    with pytest.raises(Interrupted, match="finished sequences are kept: --resume"):
        run(artifact, data, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "saved"
    monkeypatch.setattr(module, "run_passes", real)
    assert run(artifact, data, tmp_path / "out", resume=True)["sequences"] == 3


def test_several_sequences_at_once_from_the_command_line(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["track", str(artifact), "--dataset", "folder", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "2", "--threads", "1", "--protocol", "pytracking", "--filmstrip", "0"]) == 0
    assert f"results in {tmp_path / 'out'}" in capsys.readouterr().out
    assert main([*words, "--annotations", "x"]) == 2
    assert main([*words[:4], "--out", str(tmp_path / "other")]) == 2
    assert "--data, the folder" in capsys.readouterr().err


def test_a_run_in_pytorch(data: Path, tmp_path: Path) -> None:
    """A random tracker finds nothing, but it runs to the end and is scored."""
    pytest.importorskip("torch")
    from edgemim.models.one_stream import OneStreamTracker
    from edgemim.models.sizes import VitConfig
    from edgemim.models.tracker_sizes import TrackerForm
    from edgemim.models.weights import save_model
    from edgemim.tasks.tracking import TrackingTask, tracker_preprocessing

    size = TrackerForm(template_size=32, search_size=64, head_width=8).on(
        VitConfig(width=16, depth=4, heads=2, patch_size=8, image_size=32)
    )
    model = OneStreamTracker(size)
    save_model(tmp_path / "run" / "model", model.state_dict(), TrackingTask(model, tracker_preprocessing(size)).facts())
    found = run(tmp_path / "run", data, tmp_path / "out", sequences=("a",), filmstrip=0)
    assert list(found["trackers"]) == ["run"] and 0 <= found["trackers"]["run"]["auc"] <= 100
    with pytest.raises(UserError, match="no run folder at"):
        run(tmp_path / "absent", data, tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        run(tmp_path / "empty", data, tmp_path / "other")
