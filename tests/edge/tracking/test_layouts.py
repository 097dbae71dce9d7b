"""Every dataset's folders, as published, written small and read back; and the real ones where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemim.edge.tracking.layouts import open_layout, open_sequences
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.errors import UserError


def frames(folder: Path, numbers: range, form: str = "{:04d}.jpg") -> None:
    """Empty files that are named as frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / form.format(number)).touch()


def rows(count: int, first: int = 1, delimiter: str = ",") -> str:
    """Boxes whose left edge counts up."""
    return "".join(delimiter.join(map(str, (first + i, 2, 3, 4))) + "\n" for i in range(count))


def write(path: Path, text: str) -> None:
    """A text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def numbers(paths: tuple[Path, ...]) -> list[int]:
    """The numbers of frames."""
    return [int(path.stem) for path in paths]


@pytest.mark.parametrize("above", ["cat", ""])
def test_lasot(tmp_path: Path, above: str) -> None:
    for name in ("cat-10", "cat-2"):
        folder = tmp_path / above / name
        frames(folder / "img", range(1, 6), "{:08d}.jpg")
        write(folder / "groundtruth.txt", rows(5))
        write(folder / "full_occlusion.txt", "0,1,0,0,0")
        write(folder / "out_of_view.txt", "0,0,0,1,0")
    found = open_sequences("lasot", tmp_path)
    assert [sequence.name for sequence in found] == ["cat-2", "cat-10"]
    assert found[0].absent.tolist() == [False, True, False, True, False] and found[0].flagged
    assert numbers(found[0].frames) == [1, 2, 3, 4, 5]
    (tmp_path / "testing_set.txt").write_text("cat-10\ndog-1\n")
    assert [sequence.name for sequence in open_sequences("lasot", tmp_path, split="test")] == ["cat-10"]
    with pytest.raises(UserError, match=r"no list of the split 'train'; put training_set.txt there"):
        open_sequences("lasot", tmp_path, split="train")
    with pytest.raises(UserError, match=r"give testing_set.txt|give test or train"):
        open_sequences("lasot", tmp_path, split="val")


def test_lasot_toolkit_annotations(tmp_path: Path) -> None:
    write(tmp_path / "cat-1.txt", rows(3))
    write(tmp_path / "absent" / "cat-1.txt", "0\n1\n0\n")
    (found,) = open_sequences("lasot", tmp_path, frames=False)
    assert found.absent.tolist() == [False, True, False] and found.frames == ()
    with pytest.raises(SequenceError, match="annotations without frames"):
        open_sequences("lasot", tmp_path)
    write(tmp_path / "absent" / "cat-1.txt", "0\n1\n")
    with pytest.raises(SequenceError, match="2 flags of absence for 3 boxes"):
        open_sequences("lasot", tmp_path, frames=False)


def test_otb_frames_in_part_and_delimiters(tmp_path: Path) -> None:
    frames(tmp_path / "David" / "img", range(1, 771))
    write(tmp_path / "David" / "groundtruth_rect.txt", rows(471, delimiter="\t"))
    frames(tmp_path / "Football1" / "img", range(1, 81))
    write(tmp_path / "Football1" / "groundtruth_rect.txt", rows(37) + rows(37, delimiter="  \t"))
    frames(tmp_path / "Tiger1" / "img", range(1, 355))
    write(tmp_path / "Tiger1" / "groundtruth_rect.txt", rows(354))
    david, football, tiger = open_sequences("otb", tmp_path)
    assert (numbers(david.frames)[0], numbers(david.frames)[-1], len(david)) == (300, 770, 471)
    assert len(football) == 74
    assert numbers(tiger.frames)[0] == 6 and tiger.init_box.left == 6  # the annotation begins at frame 1


def test_otb_two_targets_and_an_empty_annotation(tmp_path: Path) -> None:
    for name in ("Jogging", "Human4"):
        frames(tmp_path / name / "img", range(1, 4))
        for target in (1, 2):
            write(tmp_path / name / f"groundtruth_rect.{target}.txt", rows(3, first=10 * target))
    write(tmp_path / "Human4" / "groundtruth_rect.1.txt", "")
    found = {sequence.name: sequence.init_box.left for sequence in open_sequences("otb", tmp_path)}
    assert found == {"Human4_2": 20, "Jogging_1": 10, "Jogging_2": 20}


def test_otb_an_annotation_shorter_than_the_video_is_named(tmp_path: Path) -> None:
    frames(tmp_path / "Car4" / "img", range(1, 11))
    write(tmp_path / "Car4" / "groundtruth_rect.txt", rows(9))
    with pytest.raises(SequenceError, match=r"sequence Car4: the annotation is shorter than the sequence, 9 boxes"):
        open_sequences("otb", tmp_path)


def test_got10k(tmp_path: Path) -> None:
    folder = tmp_path / "val" / "GOT-10k_Val_000001"
    frames(folder, range(1, 4), "{:08d}.jpg")
    write(folder / "groundtruth.txt", rows(3))
    write(folder / "absence.label", "0\n1\n0\n")
    write(folder / "cover.label", "8\n0\n3\n")
    write(folder / "meta_info.ini", "[METAINFO]\nurl: x\nresolution: (1920, 1080)\n")
    write(tmp_path / "val" / "list.txt", "GOT-10k_Val_000001\n")
    (found,) = open_sequences("got10k", tmp_path, split="val")
    assert found.cover is not None and found.cover.tolist() == [8, 0, 3]
    assert found.absent.tolist() == [False, True, False] and found.image_size() == (1920, 1080)
    assert open_sequences("got10k", tmp_path / "val")[0].name == found.name
    write(folder / "groundtruth.txt", rows(1))  # as in the test split
    for flags in ("absence", "cover"):
        (folder / f"{flags}.label").unlink()
    assert not open_sequences("got10k", tmp_path)[0].annotated
    with pytest.raises(UserError, match="no folder 'test'"):
        open_sequences("got10k", tmp_path, split="test")


def test_uav123_parts_of_a_video(tmp_path: Path) -> None:
    frames(tmp_path / "data_seq/UAV123/uav1", range(1, 3470), "{:06d}.jpg")
    frames(tmp_path / "data_seq/UAV123/car1_s", range(1, 4), "{:06d}.jpg")
    write(tmp_path / "anno/UAV123/uav1_1.txt", rows(1555))
    write(tmp_path / "anno/UAV123/uav1_3.txt", rows(997))
    write(tmp_path / "anno/UAV123/car1_s.txt", "1,2,3,4\nNaN,NaN,NaN,NaN\n1,2,3,4\n")
    simulated, first, third = open_sequences("uav123", tmp_path)
    assert simulated.absent.tolist() == [False, True, False] and not simulated.flagged
    assert (numbers(first.frames)[0], numbers(first.frames)[-1]) == (1, 1555)
    assert (numbers(third.frames)[0], numbers(third.frames)[-1]) == (2473, 3469)
    write(tmp_path / "anno/UAV123/uav1_3.txt", rows(998))
    with pytest.raises(SequenceError, match="998 boxes"):
        open_sequences("uav123", tmp_path, names=["uav1_3"])


def test_vot_polygons(tmp_path: Path) -> None:
    frames(tmp_path / "bag" / "color", range(1, 3), "{:08d}.jpg")
    write(tmp_path / "bag" / "groundtruth.txt", "0,0,4,0,4,2,0,2\n1,1,5,1,5,3,1,3\n")
    frames(tmp_path / "other" / "color", range(1, 3))
    write(tmp_path / "list.txt", "bag\n")
    (found,) = open_sequences("vot", tmp_path)
    assert found.boxes.tolist() == [[0, 0, 4, 2], [1, 1, 4, 2]]


def test_a_plain_folder_of_sequences_or_one_of_them(tmp_path: Path) -> None:
    frames(tmp_path / "a", range(9, 12), "{}.jpg")
    write(tmp_path / "a" / "boxes.txt", rows(3))
    frames(tmp_path / "b" / "img", range(1, 3))
    write(tmp_path / "b" / "groundtruth_rect.txt", "0,0,4,0,4,2,0,2\n1,1,2,2\n")
    (tmp_path / "empty").mkdir()
    first, second = open_sequences("folder", tmp_path)
    assert (first.name, second.name) == ("a", "b")
    assert numbers(first.frames) == [9, 10, 11]
    assert open_sequences("folder", tmp_path / "b")[0].boxes.tolist() == second.boxes.tolist()


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'lasott' \(did you mean 'lasot'\?\)"):
        open_layout("lasott", tmp_path)
    with pytest.raises(UserError, match="no folder at"):
        open_layout("lasot", tmp_path / "absent")
    with pytest.raises(UserError, match="no sequence found in"):
        open_sequences("otb", tmp_path)
    frames(tmp_path / "a", range(1, 3))
    write(tmp_path / "a" / "boxes.txt", "1,2,3\n")
    with pytest.raises(SequenceError, match=r"sequence a: .*boxes.txt, line 1: 3 numbers"):
        open_sequences("folder", tmp_path)
    with pytest.raises(UserError, match="no sequence 'aa'"):
        open_sequences("folder", tmp_path, names=["aa"])
    (tmp_path / "a" / "boxes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SequenceError, match="cannot be read"):
        open_sequences("folder", tmp_path)


def test_published_annotations(shared: Path) -> None:
    """Figures of the datasets' own papers and of the toolkit's flags."""
    otb = open_sequences("otb", shared / "tracking" / "annotations" / "OTB2015.json", frames=False)
    assert len(otb) == 100 and sum(map(len, otb)) == 59035
    assert [np.flatnonzero(~one.usable).tolist() for one in otb if one.name in ("board", "twinnings")] == [[697], [471]]
    real = open_sequences("folder", shared / "tracking" / "sequences")
    assert {one.name: len(one) for one in real} == {"Crossing": 120, "bag": 196}
    assert real[0].image_size() == (360, 240) and real[0].init_box == (205, 151, 17, 50)
