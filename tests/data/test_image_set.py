"""What all sets share: texts packed flat, labels put in order, class names matched, empty classes found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemim.data.folders import scan_folder
from edgemim.data.image_set import is_number, number_texts, pack_texts, unpack_text
from edgemim.edge.images import ImageError
from edgemim.errors import UserError


@given(st.lists(st.text()))
def test_packed_texts_come_out_as_they_went_in(texts: list[str]) -> None:
    texts = [text for text in texts if text.isascii() or text.encode("utf-8", "ignore").decode() == text]
    arrays = pack_texts("names", texts)
    assert [unpack_text(arrays, "names", place) for place in range(len(texts))] == texts


def test_names_that_are_no_utf8() -> None:
    assert unpack_text(pack_texts("n", ["caf\udce9", "x"]), "n", 0) == "caf\udce9"


@given(st.lists(st.text(max_size=3), min_size=1))
def test_labels_agree_with_numpy(texts: list[str]) -> None:
    labels, classes = number_texts(texts)
    assert [classes[label] for label in labels] == texts
    assert set(labels.tolist()) == set(range(len(classes)))
    if not all(map(is_number, texts)):
        assert list(classes) == sorted(set(texts))


def test_numbers_in_order() -> None:
    assert number_texts(["10", "9", "-1", "9"])[1] == ("-1", "9", "10")
    assert number_texts(["10", "9", "a"])[1] == ("10", "9", "a")
    assert [is_number(text) for text in ("0", "-7", "1.5", "", "-", "²", "a", "+1")] == [True, True, *[False] * 6]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/1.png", "c/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_class_file_sets_order_and_set(three: Path) -> None:
    images = scan_folder(three)
    assert images.empty_class() is None
    assert images.with_classes(("c", "b", "a")).labels.tolist() == [2, 2, 1, 0]
    assert images.with_classes(("c", "b", "a")).fingerprint != images.fingerprint
    more = images.with_classes(("c", "none", "b", "a"))
    assert "class 'none' has no image in" in str(more.empty_class())
    with pytest.raises(
        UserError, match=r"class 'b', .* 2 known classes in names\.txt; add it there.*\(first: .*b/1\.png\)"
    ):
        images.with_classes(("a", "c"), Path("names.txt"))


def test_an_empty_class_folder_is_found_but_not_where_a_file_names_the_classes(three: Path) -> None:
    (three / "d" / "deeper").mkdir(parents=True)
    (three / ".hidden").mkdir()
    images = scan_folder(three)
    sentence = str(images.empty_class())
    assert sentence.startswith(f"class folder {three}/d holds no image; add some") and "--classes FILE" in sentence
    assert images.with_classes(("a", "b", "c")).empty_class() is None
    assert images.select(np.arange(2)).empty_class() is not None  # b and c are gone from this part


def test_what_is_no_file_is_not_waited_for(three: Path) -> None:
    os.mkfifo(three / "a" / "3.png")
    (three / "a" / "4.png").symlink_to("nowhere")
    images = scan_folder(three)
    for i, reason in ((2, "is not a regular file"), (3, "does not exist")):
        for read in (images.read, images.image):
            with pytest.raises(ImageError, match=reason):
                read(i)
