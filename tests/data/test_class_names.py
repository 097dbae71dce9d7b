"""Files of class names: text or JSON, and one sentence for each way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemim.data.class_names import read_class_names
from edgemim.errors import UserError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "cat\ndog \n"),
        ("c.json", '["cat", "dog"]'),
        ("bom.txt", "\ufeffcat\r\ndog\r\n\r\n"),
        ("names", "cat\ndog"),
    ],
)
def test_names_in_their_order(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name) == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("c.txt", b"cat\n", r"c\.txt names 1 class; at least two"),
        ("c.txt", b"", r"c\.txt names 0 classes; at least two"),
        ("c.txt", b"cat\n\ndog\n", r"c\.txt: name 2 is empty"),
        ("c.txt", b"cat\ndog\ncat\n", r"c\.txt names the class 'cat' twice \(as 1 and 3\)"),
        ("c.txt", b"\xff\xfe\x00", r"c\.txt does not hold class names \(.*\); write one a line"),
        ("c.json", b"{", r"c\.json does not hold class names"),
        ("c.json", b'{"cat": 0}', r"c\.json does not hold a list of class names"),
        ("c.json", b"[1, 2]", r"c\.json does not hold a list of class names"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_class_names(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the class names in .*none\.txt: No such file"):
        read_class_names(tmp_path / "none.txt")
