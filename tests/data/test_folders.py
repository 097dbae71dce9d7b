"""Folders: found in a fixed order, labelled by one clear rule, cached until anything changes, small in memory."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from edgemim.data import folders, tree
from edgemim.data.folders import scan_folder
from edgemim.errors import UserError


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def grow(root, *names):
    """Files with the given names (content does not matter here), old enough to be cached."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    settle(root)
    return root


def settle(root):
    for directory, _, _ in os.walk(root):
        os.utime(directory, (1_600_000_000, 1_600_000_000))


def names_of(folder):
    return [os.path.relpath(folder.path(i), folder.root) for i in range(len(folder))]


def cache_files(home):
    return list(home.rglob("*.index"))


def test_order_classes_and_labels(tmp_path):
    grow(tmp_path, "b/2.png", "a/sub/z.JPG", "a/10.jpeg", "a/9.webp", "b/note.txt", ".hidden/x.png", "a/.y.png")
    folder = scan_folder(tmp_path)
    assert names_of(folder) == ["a/10.jpeg", "a/9.webp", "a/sub/z.JPG", "b/2.png"]
    assert folder.classes == ("a", "b")
    assert folder.labels.tolist() == [0, 0, 0, 1]
    assert folder.labels.dtype == np.int32
    assert [folder.label(i) for i in range(4)] == [0, 0, 0, 1]
    assert len(folder) == 4


def test_agrees_with_torchvision(tmp_path):
    """An independent reference for the common layout: one flat folder a class."""
    datasets = pytest.importorskip("torchvision.datasets")
    rng = np.random.default_rng(0)
    names = {f"{'klmno'[rng.integers(5)]}{rng.integers(30)}/{rng.integers(10**6)}.jpg" for _ in range(300)}
    grow(tmp_path, *names)
    folder, reference = scan_folder(tmp_path), datasets.ImageFolder(str(tmp_path))
    assert list(folder.classes) == reference.classes
    assert [(str(folder.path(i)), folder.label(i)) for i in range(len(folder))] == reference.samples


@pytest.mark.parametrize(
    "names",
    [("1.png", "2.png"), ("a/1.png", "a/2.png"), ("a/1.png", "b/2.png", "3.png"), ("a/1.png", "b/readme.md")],
    ids=["flat", "one folder", "a loose image", "a folder without images"],
)
def test_what_is_not_clearly_in_classes_is_unlabelled(tmp_path, names):
    folder = scan_folder(grow(tmp_path, *names))
    assert folder.classes == ()
    assert set(folder.labels.tolist()) == {-1}


def test_refusals_name_the_folder(tmp_path):
    with pytest.raises(UserError, match=r"no folder at .*missing"):
        scan_folder(tmp_path / "missing")
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"file\.png is a file"):
        scan_folder(tmp_path / "file.png")
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "empty" / "sub" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no images in .*empty"):
        scan_folder(tmp_path / "empty")


def test_names_that_are_no_utf8_or_have_line_breaks(tmp_path):
    odd = os.fsdecode(b"caf\xe9\n<b>")
    grow(tmp_path, f"{odd}/1.png", "plain/2.png")
    for _ in range(2):  # the second time from the cache
        folder = scan_folder(tmp_path)
        assert folder.classes == (odd, "plain")
        assert folder.path(0).read_bytes() == b"x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_sub_folder_is_an_error_not_a_smaller_set(tmp_path):
    grow(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot read folder .*b: Permission denied"):
            scan_folder(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_an_error_while_listing_is_an_error_not_a_smaller_set(tmp_path, monkeypatch):
    grow(tmp_path, "a/1.png", "b/2.png")
    list_directory = tree.list_directory

    def failing(path):
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied")
        return list_directory(path)

    monkeypatch.setattr(tree, "list_directory", failing)
    with pytest.raises(UserError, match=r"cannot read folder .*b: Permission denied"):
        scan_folder(tmp_path)


# The cache


def no_walk(*_):
    raise AssertionError("the folder was walked although its list is cached")


def test_an_unchanged_folder_is_not_walked_again(tmp_path, cache_home, monkeypatch):
    grow(tmp_path, "a/1.png", "a/deep/er/2.png", "b/3.png")
    first = scan_folder(tmp_path)
    assert len(cache_files(cache_home)) == 1
    monkeypatch.setattr(folders, "walk", no_walk)
    second = scan_folder(tmp_path)
    assert names_of(second) == names_of(first)
    assert second.classes == first.classes
    assert second.labels.tolist() == first.labels.tolist()
    assert second.fingerprint == first.fingerprint
    assert second.root == first.root


def test_root_without_sub_folders_is_cached_too(tmp_path, monkeypatch):
    grow(tmp_path, "1.png", "2.png")
    scan_folder(tmp_path)
    monkeypatch.setattr(folders, "walk", no_walk)
    assert len(scan_folder(tmp_path)) == 2


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new class", "empty folder goes"])
def test_any_change_of_a_directory_is_seen(tmp_path, change):
    grow(tmp_path, "a/1.png", "a/deep/2.png", "b/3.png", "c/none.txt")
    before = scan_folder(tmp_path)
    names = names_of(before)
    if change == "add":
        (tmp_path / "a" / "deep" / "4.png").write_bytes(b"x")
        expected = sorted([*names, "a/deep/4.png"])
    elif change == "remove":
        (tmp_path / "b" / "3.png").unlink()
        expected = names[:2]
    elif change == "rename":
        (tmp_path / "a" / "deep" / "2.png").rename(tmp_path / "a" / "deep" / "22.png")
        expected = ["a/1.png", "a/deep/22.png", "b/3.png"]
    elif change == "new class":
        (tmp_path / "aa").mkdir()
        (tmp_path / "aa" / "5.png").write_bytes(b"x")
        expected = ["a/1.png", "a/deep/2.png", "aa/5.png", "b/3.png"]
    else:
        shutil.rmtree(tmp_path / "c")
        expected = names
    after = scan_folder(tmp_path)
    assert names_of(after) == expected
    assert (after.fingerprint == before.fingerprint) == (expected == names)


def test_a_listing_that_may_still_change_unseen_is_not_cached(tmp_path, cache_home):
    """Two files made within one tick of the clock leave the same mtime: a young directory is not trusted."""
    grow(tmp_path, "a/1.png", "b/2.png")
    os.utime(tmp_path / "b")
    assert len(scan_folder(tmp_path)) == 2
    assert cache_files(cache_home) == []
    (tmp_path / "b" / "3.png").write_bytes(b"x")
    assert len(scan_folder(tmp_path)) == 3


def test_another_list_version_or_suffix_set_is_rebuilt(tmp_path, monkeypatch):
    grow(tmp_path, "a/1.png", "b/2.png")
    scan_folder(tmp_path)
    monkeypatch.setattr(folders, "_LIST_VERSION", 3)
    walked = []
    walk = folders.walk
    monkeypatch.setattr(folders, "walk", lambda *args: walked.append(1) or walk(*args))
    scan_folder(tmp_path)
    scan_folder(tmp_path)
    assert walked == [1]
    monkeypatch.setattr(folders, "IMAGE_SUFFIXES", frozenset({".png", ".new"}))
    scan_folder(tmp_path)
    assert walked == [1, 1]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "a folder in its place"])
def test_a_damaged_cache_is_rebuilt(tmp_path, cache_home, damage):
    grow(tmp_path, "a/1.png", "b/2.png")
    before = scan_folder(tmp_path)
    (file,) = cache_files(cache_home)
    data = bytearray(file.read_bytes())
    file.unlink()  # not written over: `before` still maps the old one
    if damage == "flip":
        data[data.index(b"a/1.png")] ^= 1
        file.write_bytes(data)
    elif damage == "a folder in its place":
        file.mkdir()
    else:
        file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "foreign": b"PK" * 400}[damage])
    after = scan_folder(tmp_path)
    assert names_of(after) == names_of(before)
    assert after.fingerprint == before.fingerprint
    if damage != "a folder in its place":
        assert len(cache_files(cache_home)) == 1
        assert scan_folder(tmp_path)._index.file is not None


def test_no_writable_cache_costs_nothing_but_time(tmp_path, monkeypatch):
    grow(tmp_path / "data", "a/1.png", "b/2.png")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = scan_folder(tmp_path / "data")
    assert names_of(folder) == ["a/1.png", "b/2.png"]
    assert names_of(pickle.loads(pickle.dumps(folder))) == names_of(folder)


def test_cache_can_be_switched_off(tmp_path, cache_home):
    grow(tmp_path, "a/1.png", "b/2.png")
    scan_folder(tmp_path, cache=False)
    assert cache_files(cache_home) == []


def test_default_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    scan_folder(grow(tmp_path / "data", "a/1.png", "b/2.png"))
    assert len(list((tmp_path / "home" / ".cache" / "edgemim").rglob("*.index"))) == 1


# Views


def test_select_and_pickle(tmp_path):
    folder = scan_folder(grow(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(5))))
    chosen = folder.select([7, 0, 3]).select([0, 2])
    assert names_of(chosen) == ["b/2.png", "a/3.png"]
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.classes == folder.classes
    assert len({folder.fingerprint, chosen.fingerprint, folder.select([3, 7]).fingerprint}) == 3
    copy = pickle.loads(pickle.dumps(chosen))
    assert names_of(copy) == names_of(chosen)
    assert copy.labels.tolist() == [1, 0]


def test_labels_numbered_as_in_another_set(tmp_path):
    grow(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/a/2.png", "val/c/2.png", "val/c/3.png")
    train, val = scan_folder(tmp_path / "train"), scan_folder(tmp_path / "val")
    assert val.labels.tolist() == [0, 1, 1]
    same = val.with_classes(train.classes)
    assert same.labels.tolist() == [0, 2, 2]
    assert same.classes == ("a", "b", "c")
    assert names_of(same) == names_of(val)
    with pytest.raises(UserError, match="class 'b'"):
        train.with_classes(val.classes)
    with pytest.raises(UserError, match="no classes"):
        scan_folder(tmp_path / "val" / "c").with_classes(train.classes)


def test_a_folder_of_one_class_is_labelled_as_one_of_the_sets(tmp_path):
    grow(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/x/2.png", "val/b/3.png", "odd/z/4.png", "mixed/b/1.png")
    train, val = scan_folder(tmp_path / "train"), scan_folder(tmp_path / "val")
    assert val.classes == ()
    assert val.with_classes(train.classes).labels.tolist() == [1, 1]
    with pytest.raises(UserError, match="class 'z', which is not one of the 2 known"):
        scan_folder(tmp_path / "odd").with_classes(train.classes)
    grow(tmp_path, "mixed/5.png")
    with pytest.raises(UserError, match="no classes"):
        scan_folder(tmp_path / "mixed").with_classes(train.classes)


# Memory


def test_a_cached_folder_is_mapped_and_pickles_small(tmp_path):
    root = grow(tmp_path, *(f"{name}/{'long' * 20}{i:05}.png" for name in "ab" for i in range(2000)))
    scan_folder(root)
    folder = scan_folder(root)
    for array in folder._index.arrays.values():
        base = array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)
    assert len(pickle.dumps(folder)) < 2000  # 4,000 paths of 90 bytes
    copy = pickle.loads(pickle.dumps(folder))
    assert [copy.path(i) for i in (0, 3999)] == [folder.path(i) for i in (0, 3999)]
    assert np.array_equal(copy.labels, folder.labels)


MEASURE = """
import json, os, sys, time
from edgemim.data.folders import scan_folder
started = time.monotonic()
folder = scan_folder(sys.argv[1])
seconds = time.monotonic() - started
assert "torch" not in sys.modules
# Not ru_maxrss: that one remembers the process that started this one.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
children = []
for start in range(2):  # workers read all over the index
    pid = os.fork()
    if not pid:
        for i in range(start, len(folder), 50): folder.path(i)
        private = sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private"))
        os._exit(0 if private < 60_000 else 1)
    children.append(os.waitpid(pid, 0)[1])
print(json.dumps([seconds, peak, len(folder), len(folder.classes), children]))
"""


def measure(root):
    """Seconds, peak MB, images, classes, workers' exit codes of a fresh process that scans `root`."""
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(MEASURE), str(root)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_scan_in_a_fresh_process_imports_no_torch_and_shares_its_index(tmp_path):
    grow(tmp_path, *(f"{name}/{i:05}.png" for name in "abc" for i in range(1000)))
    for _ in range(2):
        seconds, _, images, classes, children = measure(tmp_path)
        assert (images, classes, children) == (3000, 3, [0, 0])
        assert seconds < 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_imagenet_sized_folder(tmp_path):
    """1.28 million links in 1,000 folders: about a minute and under 500 MB the first time, a second from the cache."""
    pictures = [tmp_path / f"{number}.jpg" for number in range(25)]  # a file has 65,000 links at most on ext4
    for picture in pictures:
        picture.write_bytes(b"x")
    root = tmp_path / "data"
    try:
        for number in range(1000):
            directory = root / f"n{number:08}"
            directory.mkdir(parents=True)
            for place in range(1280):
                os.link(pictures[place % 25], directory / f"n{number:08}_{place}.JPEG")
        settle(root)
        first, again = measure(root), measure(root)
        print("seconds, peak MB:", first[:2], again[:2])
        assert first[2:] == again[2:] == [1_280_000, 1000, [0, 0]]
        assert first[0] < 90
        assert first[1] < 500
        assert again[0] < 3
        assert again[1] < 500
    finally:
        shutil.rmtree(root)
