"""Hugging Face datasets: columns found by type or name, rows read one by one, every unusable set named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from packed_files import dataset_of  # noqa: E402

from edgemim.data import sources  # noqa: E402
from edgemim.data.arrow import open_arrow, slowest_group_bytes  # noqa: E402
from edgemim.data.sources import find_sources  # noqa: E402
from edgemim.edge.images import ImageError  # noqa: E402
from edgemim.errors import UserError  # noqa: E402


def parquet(path: Path, **columns: Any) -> Path:
    """A plain parquet file, without what `datasets` writes into the schema."""
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_plain_bytes_and_numbers_without_any_description(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet", img=[b"0", b"1", b"2", b"3", b"4"], label=[10, 9, 9, 10, 9], id=list(range(5))
    )
    images = open_arrow(path, [path])
    assert [images.read(i) for i in (4, 0, 3, 1)] == [b"4", b"0", b"3", b"1"]
    assert (images.classes, images.labels.tolist()) == (("9", "10"), [1, 0, 0, 1, 0])
    names = tuple("abcdefghijk")
    assert images.with_classes(names).labels.tolist() == [10, 9, 9, 10, 9]


def test_the_type_of_a_column_counts_before_its_name(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = {
        "image": datasets.Value("binary"),
        "photo": datasets.Image(),
        "label": datasets.Value("string"),
        "kind": datasets.ClassLabel(names=["x", "y"]),
    }
    rows = {
        "image": [b"no"] * 2,
        "photo": [{"bytes": b"a"}, {"bytes": b"b"}],
        "label": ["words", "of text"],
        "kind": [1, 0],
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(tmp_path / "d")
    images = find_sources(tmp_path / "d").train.open()
    assert [images.read(0), images.read(1)] == [b"a", b"b"]
    assert (images.classes, images.labels.tolist()) == (("x", "y"), [1, 0])


def test_two_label_columns_are_not_guessed_between(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"fine_label": datasets.ClassLabel(names=["a", "b"]), "coarse_label": datasets.ClassLabel(names=["c", "d"])}
    rows = {"img": [{"bytes": b"a"}], "fine_label": [0], "coarse_label": [1]}
    datasets.Dataset.from_dict(rows, features=datasets.Features({"img": datasets.Image(), **kinds})).save_to_disk(
        tmp_path
    )
    images = find_sources(tmp_path).train.open()
    assert images.classes == ()
    with pytest.raises(UserError, match=r"several label columns \(fine_label, coarse_label\); call one 'label'"):
        images.with_classes(("a", "b"))


def test_rows_without_a_label_are_named(tmp_path: Path) -> None:
    for values in ([1, -1, 0], [1, None, 0], ["a", "", "b"]):
        path = parquet(tmp_path / "a.parquet", image=[b"0"] * 3, label=values)
        images = open_arrow(path, [path])
        assert images.classes == () and images.labels.tolist() == [-1, -1, -1]
        assert "a.parquet:row 1" in images.unlabelled
    path = parquet(tmp_path / "a.parquet", image=[b"0"], other=[1])
    assert "no column 'label'" in open_arrow(path, [path]).unlabelled
    path = parquet(tmp_path / "a.parquet", image=[b"0"], label=[0.5])
    assert "neither numbers nor names" in open_arrow(path, [path]).unlabelled


def test_a_set_without_images_says_what_it_has(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["x"], label=[0])
    with pytest.raises(UserError, match=r"no column of images \(it has text, label\); a column 'image' must hold"):
        open_arrow(path, [path])
    path = parquet(tmp_path / "a.parquet", left=[b"x"], right=[b"y"])
    with pytest.raises(UserError, match=r"several columns of images \(left, right\); call one of them 'image'"):
        open_arrow(path, [path])
    path = parquet(tmp_path / "a.parquet", image=pa.array([], pa.binary()))
    with pytest.raises(UserError, match="has no rows"):
        open_arrow(path, [path])


def test_a_row_that_holds_a_path_alone(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet", image=[{"bytes": None, "path": "/etc/passwd"}, {"bytes": b"x", "path": None}]
    )
    images = open_arrow(path, [path])
    assert images.read(1) == b"x"
    with pytest.raises(ImageError, match=r"a\.parquet:row 0: the row holds no image, at most the path"):
        images.read(0)


def test_a_label_beyond_the_names_is_named(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    dataset_of(photos).to_parquet(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    wrong = table.set_column(1, "label", pa.array([7, *table["label"].to_pylist()[1:]]))
    pq.write_table(wrong, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"row 0: label is 7, but the dataset names 4 classes \(0 to 3\)"):
        open_arrow(tmp_path, [tmp_path / "a.parquet"])


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_damaged_files_are_named(photos: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("datasets")
    if form == "saved":
        dataset_of(photos).save_to_disk(tmp_path / "d", num_shards=2)
        victim = tmp_path / "d" / "data-00001-of-00002.arrow"
    else:
        (tmp_path / "d").mkdir()
        victim = tmp_path / "d" / "x.parquet"
        dataset_of(photos).to_parquet(victim)
    data = victim.read_bytes()
    for content in (data[: len(data) // 2], b"", b"PK" * 400):
        victim.write_bytes(content)
        with pytest.raises(UserError, match=rf"{victim.name} is damaged or no {victim.suffix} file .*again") as caught:
            find_sources(tmp_path / "d").train.open()
        assert "\n" not in str(caught.value)
    victim.unlink()
    if form == "saved":
        with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow, which is not there"):
            find_sources(tmp_path / "d")


def test_files_of_two_datasets_are_refused(tmp_path: Path) -> None:
    files = [parquet(tmp_path / "a.parquet", image=[b"x"]), parquet(tmp_path / "b.parquet", image=[b"x"], label=[1])]
    with pytest.raises(UserError, match=r"b\.parquet has other columns than .*a\.parquet"):
        open_arrow(tmp_path, files)


def test_descriptions_that_name_other_folders_are_refused(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    dataset_of(photos).save_to_disk(tmp_path / "d")
    state = tmp_path / "d" / "state.json"
    text = state.read_text()
    for wrong in ("../secret.arrow", "/etc/secret.arrow", ""):
        state.write_text(text.replace("data-00000-of-00001.arrow", wrong))
        with pytest.raises(UserError, match=r"state\.json names files of other folders"):
            find_sources(tmp_path / "d")
    state.write_text("{")
    with pytest.raises(UserError, match=r"state\.json cannot be read .*save the dataset again"):
        find_sources(tmp_path / "d")
    state.write_text(text.replace('"_split"', '"_indices_data_files": [{"filename": "i.arrow"}], "_split"'))
    with pytest.raises(UserError, match="chosen by another file; save the dataset again with flatten_indices"):
        find_sources(tmp_path / "d")


def test_large_row_groups_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = parquet(tmp_path / "a.parquet", image=[bytes(1000)] * 6)
    assert slowest_group_bytes([path]) > 0
    find_sources(path).train.open()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sources, "SLOW_GROUP_BYTES", 10)
    find_sources(path).train.open()
    assert "`edgemim data shard` makes shards" in capsys.readouterr().err
