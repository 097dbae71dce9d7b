"""The index file: what is written comes back, mapped; damage of any kind is noticed; nothing half written stays."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemim.data.index import FlatIndex, IndexUnusable


def example_index(size=1000):
    rng = np.random.default_rng(0)
    arrays = {
        "text": np.frombuffer(rng.bytes(size), np.uint8),
        "numbers": rng.integers(0, 2**63, size // 7, dtype=np.uint64),
        "none": np.empty(0, np.int32),
        "labels": rng.integers(-1, 9, size // 3).astype(np.int32),
    }
    return FlatIndex(arrays, {"classes": ["a\nb", "<ü>", "\udc80"], "version": 3})


def test_round_trip_is_mapped_and_read_only(tmp_path):
    index = example_index()
    index.save(tmp_path / "new" / "x.index")
    opened = FlatIndex.open(tmp_path / "new" / "x.index")
    assert opened.meta == index.meta
    assert list(opened.arrays) == list(index.arrays)
    for name, array in index.arrays.items():
        assert opened.arrays[name].dtype == array.dtype
        assert np.array_equal(opened.arrays[name], array)
        assert not opened.arrays[name].flags.writeable
        assert not opened.arrays[name].flags.owndata


def test_pickle_passes_the_name_not_the_arrays(tmp_path):
    index = example_index(3_000_000)
    assert len(pickle.dumps(index)) > 3_000_000
    assert len(pickle.loads(pickle.dumps(index)).arrays["text"]) == 3_000_000
    index.save(tmp_path / "x.index")
    opened = FlatIndex.open(tmp_path / "x.index")
    assert len(pickle.dumps(opened)) < 500
    assert np.array_equal(pickle.loads(pickle.dumps(opened)).arrays["text"], index.arrays["text"])


def test_a_process_never_maps_another_content_than_its_parent(tmp_path):
    file = tmp_path / "x.index"
    example_index().save(file)
    sent = pickle.dumps(FlatIndex.open(file))
    example_index(2000).save(file)
    with pytest.raises(IndexUnusable, match="digest"):
        pickle.loads(sent)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path, place, bit):
    file = tmp_path / "x.index"
    index = example_index()
    index.save(file)
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= 1 << bit
    file.write_bytes(data)
    try:
        opened = FlatIndex.open(file)
    except IndexUnusable:
        return
    # Only padding may have been hit: then everything must still be as it was.
    assert opened.meta == index.meta
    assert all(np.array_equal(opened.arrays[name], array) for name, array in index.arrays.items())


@pytest.mark.parametrize("keep", [0, 1, 15, 16, 100, 300, -1])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    file = tmp_path / "x.index"
    example_index().save(file)
    data = file.read_bytes()
    file.write_bytes(data[:keep] if keep >= 0 else data[: len(data) - 64])
    with pytest.raises(IndexUnusable):
        FlatIndex.open(file)


def test_a_missing_file_and_a_foreign_one_are_refused(tmp_path):
    with pytest.raises(IndexUnusable):
        FlatIndex.open(tmp_path / "nothing")
    (tmp_path / "text").write_bytes(b"hello, this is no index at all" * 9)
    with pytest.raises(IndexUnusable):
        FlatIndex.open(tmp_path / "text")


def test_a_failed_write_leaves_the_old_file_and_no_half_one(tmp_path):
    """The disk is full after 64 kB (a limit on the file's size stands for it)."""
    file = tmp_path / "x.index"
    example_index().save(file)
    before = file.read_bytes()
    script = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from edgemim.data.index import FlatIndex\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n"
        "    FlatIndex({'a': np.zeros(10**6, np.uint8)}, {}).save(Path(sys.argv[1]))\n"
        "except OSError as error:\n"
        "    sys.exit(0 if error.errno == 27 else 1)\n"
        "sys.exit(2)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(file)]).returncode == 0
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.index"]
