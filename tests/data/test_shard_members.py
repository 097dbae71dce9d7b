"""Tar files listed by headers: WebDataset's keys, and every damaged or odd archive named; nothing leaves the archive."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from packed_files import samples_of, write_tar

from edgemim.data.shard_members import list_members
from edgemim.errors import UserError

ENTRIES = [("a/k1.jpg", b"first"), ("a/k1.cls", b"3"), ("k2.json", b'{"label": "cat", "w": 1}'), ("k2.png", b"second!")]


def test_keys_labels_and_places(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [*ENTRIES, ("k3.webp", b"3"), ("k3.txt", b"a caption"), ("README", b"x")])
    members = list_members(path)
    assert [(member.name, member.label) for member in members] == [
        ("a/k1.jpg", "3"),
        ("k2.png", "cat"),
        ("k3.webp", None),
    ]
    data = path.read_bytes()
    assert [data[m.offset : m.offset + m.size] for m in members] == [b"first", b"second!", b"3"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format(photos: Path, tmp_path: Path, format: int) -> None:
    entries = [("long/" * 30 + name, data) for name, data in samples_of(photos)]
    if format == tarfile.USTAR_FORMAT:
        entries = samples_of(photos)
    path = write_tar(tmp_path / "s.tar", entries, format=format)
    with tarfile.open(path) as archive:
        expected = {entry.name: (entry.offset_data, entry.size) for entry in archive if not entry.name.endswith(".cls")}
    assert {member.name: (member.offset, member.size) for member in list_members(path)} == expected


def test_the_rule_of_webdataset(tmp_path: Path) -> None:
    """The key ends at the first dot of the file's name, not of its folder; other images of a key are not the sample's."""
    path = write_tar(
        tmp_path / "s.tar",
        [
            ("v1.0/k.jpg", b"1"),
            ("v1.0/k.cls", b"7"),
            ("v1.0/k.mask.png", b"m"),
            ("x.JPEG", b"2"),
            (".hidden.jpg", b"h"),
        ],
    )
    assert [(member.name, member.label) for member in list_members(path)] == [("v1.0/k.jpg", "7"), ("x.JPEG", None)]


def test_labels_may_come_apart_from_their_images(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "s.tar", [("1.jpg", b"x"), ("2.jpg", b"y"), ("1.cls", b"0"), ("2.json", b'{"label": 1}')]
    )
    assert [member.label for member in list_members(path)] == ["0", "1"]


def test_a_class_file_comes_before_json(tmp_path: Path) -> None:
    for order in (1, -1):
        entries = [("1.jpg", b"x"), ("1.json", b'{"label": 5}'), ("1.cls", b"4")][::order]
        assert [member.label for member in list_members(write_tar(tmp_path / "s.tar", entries))] == ["4"]


@pytest.mark.parametrize("cut", [1, 511, 512, 600, 1024, 1300])
def test_a_truncated_file_is_named_wherever_it_ends(tmp_path: Path, cut: int) -> None:
    """1,024 zero bytes end an archive: without them nobody knows that all is there."""
    path = write_tar(tmp_path / "s.tar", ENTRIES)
    data = path.read_bytes()
    whole = len(ENTRIES) * 1024
    path.write_bytes(data[: whole + 512 - cut])
    with pytest.raises(
        UserError, match=r"s\.tar (ends within|is cut short or damaged after) '(k2\.png|k2\.json)'.*again"
    ):
        list_members(path)
    path.write_bytes(data[: whole + 512])
    assert len(list_members(path)) == 2


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", ENTRIES)
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # in the checksum of the second header
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"s\.tar is cut short or damaged after 'a/k1\.jpg' \(byte 1,024\)"):
        list_members(path)


def test_every_flipped_bit_of_a_header_ends_in_a_sentence_or_a_list(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", ENTRIES)
    data = path.read_bytes()
    refused = 0
    for bit in range(0, 512 * 8, 37):
        damaged = bytearray(data)
        damaged[2048 + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            list_members(path)
        except UserError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"s\.tar is empty"),
        (b"\x89PNG" + bytes(range(256)) * 4, r"s\.tar is no tar file"),
        (gzip.compress(b"x" * 3000), r"s\.tar is compressed \(gzip\).*decompress it first"),
    ],
    ids=[
        "empty",
        "a picture",
        "compressed",
    ],  # compressed bytes hold the time: two processes would disagree on the name
)
def test_what_is_no_tar_file(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        list_members(tmp_path / "s.tar")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_links_devices_and_holes_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        info = tarfile.TarInfo("../../etc/k.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info, io.BytesIO())
    with pytest.raises(UserError, match=r"s\.tar(:\.\./\.\./etc/k\.jpg is not a plain file| is cut short| is no tar)"):
        list_members(tmp_path / "s.tar")


def test_a_name_with_dots_goes_nowhere(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "deep" / "s.tar", [("../../evil.jpg", b"x"), ("/abs/k.jpg", b"y")])
    assert [member.name for member in list_members(path)] == ["../../evil.jpg", "/abs/k.jpg"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "s.tar"]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([("k.jpg", b"x"), ("k.jpg", b"y")], r"s\.tar:k\.jpg: there is another image of this name"),
        ([("k.jpg", b"x"), ("k.cls", b"\xff\xff")], r"s\.tar:k\.cls cannot be read as a label"),
        ([("k.jpg", b"x"), ("k.cls", b" \n")], r"s\.tar:k\.cls is empty"),
        ([("k.jpg", b"x"), ("k.json", b"{")], r"s\.tar:k\.json cannot be read as a label"),
        ([("k.jpg", b"x"), ("k.cls", b"1" * (2 << 20))], r"s\.tar:k\.cls is no label: it has 2,097,152 bytes"),
    ],
)
def test_bad_members_are_named(tmp_path: Path, entries: list[tuple[str, bytes]], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list_members(write_tar(tmp_path / "s.tar", entries))


@pytest.mark.parametrize("content", [b"[1]", b"{}", b'{"label": null}', b'{"label": 0.5}', b'{"label": [1]}'])
def test_json_without_a_label(tmp_path: Path, content: bytes) -> None:
    assert list_members(write_tar(tmp_path / "s.tar", [("k.jpg", b"x"), ("k.json", content)]))[0].label is None
