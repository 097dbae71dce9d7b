"""One JSON file for a whole dataset, in its two spellings; flags and lists that readers share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgemim.edge.tracking.annotations import JsonFile, either_flag, frame_number, read_flags, stated_resolution
from edgemim.edge.tracking.layouts import open_layout
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.errors import UserError


def write(path: Path, content: object) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(content))
    return path


def test_frames_stand_beside_the_file(tmp_path: Path) -> None:
    entry = {"name": "David", "image_files": ["0300.jpg", "0301.jpg"], "gt_rect": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    path = write(tmp_path / "otb.json", {"david": entry})
    assert open_layout("otb", path, frames=False).read("david").boxes[1].tolist() == [5, 6, 7, 8]
    with pytest.raises(SequenceError, match=r"no frame at .*0300\.jpg"):
        open_layout("otb", path).read("david")
    (tmp_path / "David" / "img").mkdir(parents=True)
    for name in entry["image_files"]:
        (tmp_path / "David" / "img" / name).touch()
    assert [frame_number(frame) for frame in open_layout("otb", path).read("david").frames] == [300, 301]


def test_pysot_calls_visible_frames_absent(tmp_path: Path) -> None:
    entry = {"img_names": ["a/1.jpg", "a/2.jpg"], "gt_rect": [[1, 2, 3, 4]] * 2, "absent": [1, 0]}
    found = JsonFile(write(tmp_path / "LaSOT.json", {"a": entry}), frames=False).read("a")
    assert found.absent.tolist() == [False, True] and found.flagged


@pytest.mark.parametrize("content", ["[]", "[1]", "{", '{"a": {}}', '{"a": 3}'])
def test_another_json_file_is_no_annotation(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match="is no annotation of sequences"):
        JsonFile(tmp_path / "x.json")


def test_rows_of_json_are_four_numbers(tmp_path: Path) -> None:
    reader = JsonFile(write(tmp_path / "x.json", {"a": {"gt_rect": [[1, 2, 3]]}}), frames=False)
    with pytest.raises(SequenceError, match="not four numbers"):
        reader.read("a")


def test_flags_by_line_or_by_comma(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("0,1,0\n")
    (tmp_path / "b").write_text("1\n0\n0\n")
    first, second = (read_flags("s", tmp_path / name) for name in ("a", "b"))
    both = either_flag("s", first, second)
    assert both is not None and both.tolist() == [True, True, False]
    assert read_flags("s", tmp_path / "c") is None and either_flag("s", first, None) is None
    (tmp_path / "a").write_text("0,yes")
    with pytest.raises(SequenceError, match="something else than numbers"):
        read_flags("s", tmp_path / "a")
    with pytest.raises(SequenceError, match="3 flags of occlusion, 2"):
        either_flag("s", np.zeros(3, int), np.zeros(2, int))


def test_resolution(tmp_path: Path) -> None:
    (tmp_path / "meta_info.ini").write_text("[METAINFO]\nresolution: (1280, 720)\n")
    assert stated_resolution(tmp_path / "meta_info.ini") == (1280, 720)
    assert stated_resolution(tmp_path / "absent.ini") is None
