"""CSV files: rows as they stand, and a sentence with the line for each kind of bad row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from edgemim.data.table import read_table
from edgemim.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/3.png", "b/with, comma.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "set.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_in_any_order_with_or_without_a_header(images: Path) -> None:
    outside = images / "b" / "3.png"
    for text in (
        f"path,label\na/1.png,cat\n\n{outside},dog\n",
        f"Label,Path\ncat,a/1.png\ndog,{outside}\n",
        f"\ufeffa/1.png,cat\n{outside},dog\n",
    ):
        table = read_table(written(images, text))[""]
        assert [table.read(i) for i in range(2)] == [b"a/1.png", b"b/3.png"]
        assert (table.classes, table.labels.tolist()) == (("cat", "dog"), [0, 1])


def test_python_writes_what_is_read(images: Path) -> None:
    """The csv module as reference for quoting."""
    with open(images / "set.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["path", "label"], ["b/with, comma.png", 'a "b",\nc'], ["a/1.png", "x"]])
    table = read_table(images / "set.csv")[""]
    assert table.path(0).name == "with, comma.png"
    assert table.classes[table.label(0)] == 'a "b",\nc'


def test_numbers_are_ordered_as_numbers(images: Path) -> None:
    table = read_table(written(images, "a/1.png,10\na/2.png,9\nb/3.png,0\n"))[""]
    assert (table.classes, table.labels.tolist()) == (("0", "9", "10"), [2, 1, 0])


def test_paths_alone_are_unlabelled(images: Path) -> None:
    for text in ("path\na/1.png\nb/3.png\n", "a/1.png\nb/3.png\n"):
        table = read_table(written(images, text))[""]
        assert (table.classes, table.labels.tolist()) == ((), [-1, -1])
        assert "has no labels; write a second column" in table.unlabelled


def test_splits_by_their_usual_names(images: Path) -> None:
    parts = read_table(written(images, "path,label,split\na/1.png,x,train\na/2.png,y,Validation\nb/3.png,x,test\n"))
    assert {split: len(part) for split, part in parts.items()} == {"train": 1, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\na/1.png,cat\na/9.png,cat\n", r"set\.csv, line 3: no file 'a/9\.png' .*correct the path"),
        ("path,label\nnone/9.png,cat\n", r"line 2: no file 'none/9\.png'"),
        ("image,class\na/1.png,cat\n", r"line 1: no file 'image' .*a header begins with 'path'"),
        ("path,label\na/1.png,\n", r"set\.csv, line 2: no label; write it, or remove the line"),
        ("path,label\n,cat\n", r"set\.csv, line 2: no path; write it"),
        ("path,label\na/1.png,cat,x\n", r"set\.csv, line 2: 3 columns, not 2 \(path,label\)"),
        ("path,label\na/1.png\n", r"set\.csv, line 2: 1 columns, not 2"),
        ("a/1.png,cat\na/2.png;cat\n", r"set\.csv, line 2: 1 columns, not 2"),
        ("a,b,c,d\n", r"set\.csv, line 1: 4 columns; known are path,label,split"),
        (
            "path,label,split\na/1.png,cat,training2\n",
            r"line 2: unknown split 'training2'; known are train, training, val",
        ),
        ("path,label,split\na/1.png,cat,\n", r"line 2: unknown split ''"),
        ("path,colour\na/1.png,cat\n", r"line 1: unknown column 'colour'; known are path,label,split"),
        ("path,path\na/1.png,cat\n", r"line 1: unknown column 'path'.* each once"),
        ("path,label\n", r"set\.csv has a header and no rows"),
        ("\n \n", r"set\.csv is empty"),
        ('path,label\n"a/1.png,cat\n', r"set\.csv is no CSV file in UTF-8 \(unexpected end of data\)"),
    ],
)
def test_a_bad_row_is_named_with_its_line(images: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read_table(written(images, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(images: Path) -> None:
    (images / "set.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\x00")
    with pytest.raises(UserError, match=r"set\.csv is no CSV file in UTF-8"):
        read_table(images / "set.csv")


def test_a_label_outside_the_class_file_is_named_with_its_line(images: Path) -> None:
    table = read_table(written(images, "path,label\na/1.png,cat\na/2.png,dog\nb/3.png,cow\n"))[""]
    with pytest.raises(
        UserError, match=r"class 'cow', which is not one of the 2 known classes in .*c\.txt.*\(first: line 4\)"
    ):
        table.with_classes(("dog", "cat"), images / "c.txt")
    assert table.with_classes(("cow", "dog", "cat")).labels.tolist() == [2, 1, 0]
