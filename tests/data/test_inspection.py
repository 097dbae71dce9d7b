"""One file's facts: every kind of odd or unreadable file is called what it is; processes change nothing."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from odd_files import GOOD, HUGE_PIXELS, ODD, UNREADABLE, noise, odd_folder
from PIL import Image

from edgemim.data import inspection
from edgemim.data.inspection import FileFacts, FileLimits, inspect_file, inspect_files
from edgemim.errors import EdgemimError

LIMITS = FileLimits(huge_pixels=HUGE_PIXELS)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return odd_folder(tmp_path_factory.mktemp("odd") / "files")


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file(odd, name):
    data = (odd / name).read_bytes()
    digest = hashlib.blake2b(data, digest_size=16).digest()
    assert inspect_file(str(odd / name), LIMITS) == FileFacts(len(data), digest, "JPEG", "RGB", 48, 64)


@pytest.mark.parametrize(("name", "kinds"), ODD.items())
def test_odd_files_are_readable_and_named(odd, name, kinds):
    facts = inspect_file(str(odd / name), LIMITS)
    assert facts.odd == kinds
    assert facts.error == ""


@pytest.mark.parametrize(("name", "reason"), UNREADABLE.items())
def test_unreadable_files_have_a_reason(odd, name, reason):
    assert reason in inspect_file(str(odd / name), LIMITS).error


def test_without_decoding_only_headers_count(odd):
    shallow = LIMITS._replace(decode=False)
    assert inspect_file(str(odd / "cut.jpg"), shallow).error == ""
    assert "too large" in inspect_file(str(odd / "bomb.png"), shallow).error
    assert "not an image" in inspect_file(str(odd / "text.jpg"), shallow).error
    assert "limit of 3000" in inspect_file(str(odd / "0.jpg"), shallow._replace(max_pixels=3000)).error


def test_a_camera_jpeg_with_a_second_picture_is_not_odd(tmp_path):
    noise().save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[noise(seed=1)])
    facts = inspect_file(str(tmp_path / "phone.jpg"), LIMITS)
    assert facts.format == "MPO"
    assert facts.odd == ()
    assert facts.error == ""


def test_broken_metadata_does_not_make_whole_pixels_unreadable(tmp_path, monkeypatch):
    noise().save(tmp_path / "x.jpg")

    def broken(self):
        raise SyntaxError("bad EXIF")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    facts = inspect_file(str(tmp_path / "x.jpg"), LIMITS)
    assert facts.odd == ("damaged metadata",)
    assert (facts.error, facts.format, facts.width) == ("", "JPEG", 48)


def test_a_file_too_big_to_hold_is_not_read(tmp_path):
    with open(tmp_path / "sparse.png", "wb") as stream:
        stream.truncate(1 << 40)
    facts = inspect_file(str(tmp_path / "sparse.png"), LIMITS)
    assert "1,099,511,627,776 bytes" in facts.error


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_same_facts_in_the_same_order(odd, workers):
    names = sorted(os.listdir(odd)) * 8
    expected = [inspect_file(str(odd / name), LIMITS) for name in names]
    assert list(inspect_files(odd, names, LIMITS, 0)) == expected
    assert list(inspect_files(odd, names, LIMITS, workers)) == expected


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_one_clear_error(odd, monkeypatch):
    monkeypatch.setattr(inspection, "inspect_file", die)
    with pytest.raises(EdgemimError, match="out of memory"):
        list(inspect_files(odd, ["0.jpg"] * 50, LIMITS, 2))


def test_no_process_outlives_a_killed_check(odd):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edgemim.data.inspection import FileLimits, inspect_files\n"
        "facts = inspect_files(Path(sys.argv[1]), ['0.jpg'] * 5000, FileLimits(), 2)\n"
        "next(facts)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(odd)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.kill()
    process.wait(10)
    started = time.monotonic()
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert time.monotonic() - started < 5
