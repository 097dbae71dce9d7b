"""Sets opened by their layouts: what is kept, what is held out, what is left out, and mistakes in a sentence each."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tracking_sets import (
    write_boxes,
    write_coco,
    write_folder,
    write_frames,
    write_got10k,
    write_lasot,
    write_masks,
    write_trackingnet,
)

from edgemim.data.tracking.config import PairsConfig, PairSourceConfig
from edgemim.data.tracking.opening import TrackingData, open_tracking_data, read_tracks, recognise
from edgemim.data.tracking.regions import RandomRegions
from edgemim.data.tracking.sources import SequenceSource
from edgemim.errors import UserError


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small set of each layout."""
    root = tmp_path_factory.mktemp("sets")
    writers = (write_lasot, write_got10k, write_trackingnet, write_folder, write_coco, write_masks)
    for name, write in zip(("lasot", "got10k", "trackingnet", "folder", "coco", "masks"), writers, strict=True):
        write(root / name)
    return root


def opened(data: Path | None, *sources: dict[str, Any], **settings: Any) -> TrackingData:
    config = PairsConfig.model_validate({"sources": sources, **settings})
    return open_tracking_data(config, data, val_share=0.3, seed=0)


@pytest.mark.parametrize("layout", ["lasot", "got10k", "trackingnet", "folder", "coco", "masks"])
def test_layouts_are_recognised_and_give_pairs_of_files_that_exist(sets: Path, layout: str) -> None:
    assert recognise(sets / layout) == ("images" if layout == "masks" else layout)
    data = opened(sets / layout)
    rng = random.Random(0)
    for _ in range(20):
        pair = data.train.draw(rng)
        assert pair.template.path.is_file() and pair.search.path.is_file()
        assert min(pair.search.box[2:]) > 0
        assert (pair.template.path == pair.search.path) == (layout in ("coco", "masks"))


def test_a_mixture_names_its_sources(sets: Path) -> None:
    data = opened(sets, {"root": "lasot", "ratio": 3}, {"root": "masks"})
    assert data.summary == (
        f"{sets}/lasot: 2 targets, 75% of the pairs",
        f"{sets}/masks: 12 targets, 25% of the pairs",
    )
    assert data.train.ratios == (3, 1) and data.warnings == ()


def test_nothing_held_out_is_trained_on(sets: Path) -> None:
    for layout in ("lasot", "masks", "coco"):
        data = opened(sets / layout)
        rng = random.Random(0)
        seen = [{pair.search.path for pair in (part.draw(rng) for _ in range(200))} for part in (data.train, data.val)]
        assert seen[0] and seen[1] and not seen[0] & seen[1]
        assert opened(sets / layout).train.fingerprint == data.train.fingerprint


def test_hidden_frames_are_not_shown(sets: Path) -> None:
    source = PairSourceConfig(layout="lasot", root=sets / "lasot")
    cat = next(track for track in read_tracks(source, "lasot", []) if track.name == "cat-1")
    assert not {3, 4, 5} & set(cat.visible.tolist()) and len(cat.visible) == 21
    got = read_tracks(PairSourceConfig(root=sets / "got10k", split="train"), "got10k", [])
    assert [len(track.visible) for track in got] == [22, 24, 24], "a missing absence.label hides nothing"


def test_names_and_numbers_choose_sequences(sets: Path, tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("GOT-10k_Train_000001\nGOT-10k_Train_000003\n")
    (tmp_path / "numbers.txt").write_text("0\n2\n")
    (tmp_path / "exclude.txt").write_text("GOT-10k_Train_000002\nGOT-10k_Train_999999\n")
    base = PairSourceConfig(root=sets / "got10k", split="train")
    for change in ({"only": "only.txt"}, {"only": "numbers.txt"}, {"exclude": "exclude.txt"}):
        paths = {key: tmp_path / value for key, value in change.items()}
        tracks = read_tracks(base.model_copy(update=paths), "got10k", [])
        assert [track.name[-1] for track in tracks] == ["1", "3"]
    for text, sentence in (("cat-9", "names 'cat-9', which is not in"), ("7", "holds the number 7; the set has 3")):
        (tmp_path / "only.txt").write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_tracks(base.model_copy(update={"only": tmp_path / "only.txt"}), "got10k", [])


def test_lasots_test_sequences_are_not_trained_on(sets: Path, tmp_path: Path) -> None:
    write_lasot(tmp_path, sequences=4)
    (tmp_path / "training_set.txt").write_text("cat-1\ncat-2\ncat-4\n")
    data = opened(tmp_path)
    names = {track.name for part in (data.train, data.val) for source in part.sources for track in source.tracks}  # pyright: ignore
    assert names == {"cat-1", "cat-2", "cat-4"} and data.warnings == ()
    (tmp_path / "training_set.txt").unlink()
    assert "has no training_set.txt" in opened(tmp_path).warnings[0]


def test_short_sequences_are_left_out_and_said(sets: Path, tmp_path: Path) -> None:
    write_folder(tmp_path, sequences=2)
    write_boxes(tmp_path / "boxes.tmp", write_frames(tmp_path / "tiny", 6, 3))
    (tmp_path / "boxes.tmp").rename(tmp_path / "tiny" / "boxes.txt")
    data = opened(tmp_path, {"layout": "folder"})
    assert len(data.warnings) == 1 and "1 of 3 sequences" in data.warnings[0] and "such as tiny" in data.warnings[0]
    assert sum(len(source) for source in (*data.train.sources, *data.val.sources)) == 2
    assert opened(tmp_path, {"layout": "folder", "min_frames": 4}).warnings == ()
    with pytest.raises(UserError, match=r"no sequence in .* has 50 frames"):
        opened(tmp_path, {"layout": "folder", "min_frames": 50})


def test_random_regions_must_be_asked_for(photos: Path) -> None:
    with pytest.raises(UserError, match=r"laid out like no tracking set.*--task.pairs.objects random"):
        opened(photos)
    with pytest.raises(UserError, match=r"neither boxes.csv nor masks; give objects: random"):
        opened(photos, layout="images")
    data = opened(photos, layout="images", objects="random")
    assert isinstance(data.train.sources[0], RandomRegions)
    assert (len(data.train.sources[0]), len(data.val.sources[0])) == (84, 36)


def test_an_annotation_at_fault_is_named_with_the_way_out(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = tmp_path / "walk-1" / "boxes.txt"
    rows = path.read_text().splitlines()
    for text, sentence in (
        ("\n".join(rows[:-3]), "shorter than the sequence"),
        ("\n".join([*rows[:4], "1,2,3", *rows[5:]]), "line 5: 3 numbers"),
        ("\n".join([*rows[:4], "a b c d", *rows[5:]]), "line 5"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"walk-1.*{sentence}.*'exclude'"):
            opened(tmp_path)
    (tmp_path / "not.txt").write_text("walk-1")
    assert isinstance(opened(tmp_path, {"exclude": "not.txt"}).train.sources[0], SequenceSource)


def test_mistakes_are_one_sentence(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --data DIR"):
        opened(None)
    with pytest.raises(UserError, match=r"no folder at .*gone"):
        opened(sets, {"root": "gone"})
    lone = tmp_path / "lone"
    write_folder(lone, sequences=1)
    with pytest.raises(UserError, match="cannot be held out"):
        opened(lone)
