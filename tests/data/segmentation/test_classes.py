"""Class names in each of the forms that sets come with, and the mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemim.data.segmentation.classes import find_classes
from edgemim.errors import UserError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "sky\n\nroad \n"),
        ("classes.json", '["sky", "road"]'),
        ("codes.txt", "\ufeffsky\nroad\n"),
        (
            "objectInfo150.txt",
            "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t1\t1\tsky, heaven\n2\t0\t1\t1\t1\troad\n",
        ),
    ],
)
def test_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    given = tmp_path / name if name.startswith("object") else None
    assert find_classes(tmp_path, given).names == ("sky", "road")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nsky,1,2,3\nVoid,0,0,0\nroad,9,8,7\n"),
        ("classes.json", '{"sky": [1, 2, 3], "void": [0, 0, 0], "road": [9, 8, 7]}'),
    ],
)
def test_colours(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = find_classes(tmp_path, None)
    assert found.names == ("sky", "road")
    assert found.colours == {(1, 2, 3): 0, (0, 0, 0): 255, (9, 8, 7): 1}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("classes.txt", "only\n", "names 1 class; at least two"),
        ("classes.txt", "", "names 0 classes; at least two"),
        ("classes.txt", "a\nb\na\n", "names the class 'a' twice"),
        ("classes.txt", "\n".join(map(str, range(256))), "more than 255"),
        ("classes.json", '{"a": 1}', "does not hold class names"),
        ("classes.json", "{", "does not hold class names"),
        ("classes.json", '{"a": [1, 2, 3], "b": [1, 2, 3]}', "stands for another class"),
        ("class_dict.csv", "name,r,g,b\na,1,2\n", "is not three numbers"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        find_classes(tmp_path, None)
    assert name in str(caught.value)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no class names in .*classes\.txt"):
        find_classes(tmp_path, None)
    with pytest.raises(UserError, match="cannot read the class names"):
        find_classes(tmp_path, tmp_path / "absent.txt")
