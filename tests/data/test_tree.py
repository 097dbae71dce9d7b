"""The walk: a fixed order, links followed but never in circles, splits found by their usual names."""

import os
from pathlib import Path

from edgemim.data.tree import find_splits, list_directory, walk


def plant(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def refuse(path, error):
    raise AssertionError(f"{path}: {error}")


def images_below(root):
    found = []
    for relative, _, listing in walk(root, refuse):
        found += [os.fsdecode(os.path.join(relative, name)) for name in listing.images]
    return found


def test_a_directory_is_sorted_into_kinds(tmp_path):
    plant(tmp_path, "b.PNG", "a.jpg", "notes.txt", "noext", ".hidden.png", ".git/x.png", "sub/x.png", "album.jpg/x.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    listing = list_directory(os.fsencode(tmp_path))
    assert listing.images == [b"a.jpg", b"b.PNG", b"broken.png"]
    assert listing.folders == [b"album.jpg", b"sub"]
    assert listing.others == [b"noext", b"notes.txt"]


def test_order_is_files_then_folders(tmp_path):
    plant(tmp_path, "z.png", "a/z.png", "a/b/1.png", "a.png", "B/1.png", "a/c.png")
    assert images_below(tmp_path) == ["a.png", "z.png", "B/1.png", "a/c.png", "a/z.png", "a/b/1.png"]


def test_links_are_followed_but_never_in_circles(tmp_path):
    plant(tmp_path / "store", "real.png", "more/other.png")
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "a" / "link.png").symlink_to(tmp_path / "store" / "real.png")
    (data / "a" / "loop").symlink_to(data)
    (data / "b").symlink_to(tmp_path / "store" / "more")
    (data / "c").symlink_to(tmp_path / "store" / "more")
    assert images_below(data) == ["a/link.png", "b/other.png", "c/other.png"]


def test_the_time_of_each_directory_comes_along(tmp_path):
    plant(tmp_path, "a/1.png", "b/2.png")
    os.utime(tmp_path / "b", ns=(5, 1_234_567_890_123_456_789))
    times = {relative: mtime_ns for relative, mtime_ns, _ in walk(tmp_path, refuse)}
    assert times == {name: (tmp_path / os.fsdecode(name)).stat().st_mtime_ns for name in (b"", b"a", b"b")}
    assert times[b"b"] == 1_234_567_890_123_456_789


def test_an_unreadable_directory_is_handed_over_and_the_walk_goes_on(tmp_path, monkeypatch):
    plant(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    scandir = os.scandir

    def failing(path):
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    faults = []
    seen = [relative for relative, _, _ in walk(tmp_path, lambda path, error: faults.append((path, error.strerror)))]
    assert seen == [b"", b"a", b"c"]
    assert faults == [(tmp_path / "b", "Permission denied")]


def test_splits(tmp_path):
    plant(
        tmp_path,
        "x/train/1.png",
        "x/validation/1.png",
        "x/other/1.png",
        "y/train/1.png",
        "z/train/1.png",
        "z/test/1.png",
    )
    assert find_splits(tmp_path / "x") == {"train": tmp_path / "x/train", "val": tmp_path / "x/validation"}
    assert find_splits(tmp_path / "y") == {}
    assert set(find_splits(tmp_path / "z")) == {"train", "test"}
    assert find_splits(Path("/nowhere")) == {}
