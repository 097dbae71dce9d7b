"""Boxes are on the disk line by line, nothing old is lost, and runs of the same second do not meet."""

import csv
from pathlib import Path

import numpy as np
import pytest

from edgemim.commands.track import TrackConfig
from edgemim.commands.tracking import outputs as outputs_module
from edgemim.commands.tracking.outputs import Outputs
from edgemim.edge.tracking.boxes import Box
from edgemim.errors import UserError

IMAGE = np.full((40, 60, 3), 128, np.uint8)


@pytest.fixture(autouse=True)
def _inside_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_boxes_are_on_the_disk_before_the_end() -> None:
    out = Outputs(TrackConfig())
    out.write_box(1, Box(1, 2.5, 3, 4), 1.0, False)
    out.write_box(2, Box(-1, 2, 3, 1 / 3), 0.12344, True)
    with open(out.csv) as file:  # not closed, as after a kill
        rows = list(csv.reader(file))
    assert rows == [
        ["frame", "left", "top", "width", "height", "score", "lost"],
        ["1", "1.000", "2.500", "3.000", "4.000", "1.0000", "0"],
        ["2", "-1.000", "2.000", "3.000", "0.333", "0.1234", "1"],
    ]
    out.close()
    assert out.csv == out.folder / "boxes.csv" and out.drawn is None


def test_a_video_and_a_folder_of_frames() -> None:
    for target, drawn, folder in (("a/v.mp4", "a/v.mp4", None), ("b", "b/frames", "b")):
        out = Outputs(TrackConfig(out=Path(target)))
        out.write_frame(IMAGE, 25.0)
        out.close()
        assert out.drawn == Path(drawn) and Path(drawn).exists()
        assert out.folder.parts[0] == (folder or "runs")
    assert [path.name for path in Path("b/frames").iterdir()] == ["000001.jpg"]


def test_runs_of_the_same_second_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_module, "default_folder", lambda verb: Path("runs") / f"{verb}-now")
    folders = [Outputs(TrackConfig()).folder for _ in range(3)]
    assert [folder.name for folder in folders] == ["track-now", "track-now-2", "track-now-3"]


def test_existing_files_are_not_lost() -> None:
    for name in ("old.mp4", "old.csv"):
        Path(name).write_text("precious")
    given = {"out": Path("old.mp4")}, {"csv": Path("old.csv")}
    for option in given:
        with pytest.raises(UserError, match=r"old\.\w+ exists already; give another path, or --overwrite"):
            Outputs(TrackConfig.model_validate(option))
    assert Path("old.mp4").read_text() == Path("old.csv").read_text() == "precious"
    Outputs(TrackConfig(csv=Path("old.csv"), overwrite=True)).close()
    assert Path("old.csv").read_text().startswith("frame,")
    Path("folder").mkdir()
    Path("folder/mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"is not empty|was not made by edgemim"):
            Outputs(TrackConfig(out=Path("folder"), overwrite=overwrite))
    with pytest.raises(UserError, match="exists already"):
        Outputs(TrackConfig(csv=Path("folder"), overwrite=True))


def test_where_nothing_can_be_written() -> None:
    Path("file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write file/boxes\.csv.*choose another --csv"):
        Outputs(TrackConfig(csv=Path("file/boxes.csv")))
    Path("runs").rename("old") if Path("runs").exists() else None
    Path("runs").write_text("x")
    with pytest.raises(UserError, match="cannot write to runs/track-"):
        Outputs(TrackConfig())
