"""Images of one's own, good, odd and bad: each is trained on or skipped with a reason, and counted in run.json."""

from __future__ import annotations

import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fault_harness import Ended, Run
from PIL import Image

Call = Callable[..., Ended]
COMMAND = "pretrain --encoder vit_nano --batch-size 8 --warmup-epochs 1 --log-every 1 --workers 0".split()


def odd_images(photo: Image.Image, folder: Path) -> list[str]:
    """Images that every good program reads: colour modes, depths, orientation, animation, an upper-case suffix."""
    folder.mkdir()
    pixels = np.asarray(photo)
    photo.save(folder / "colour.jpg")
    photo.save(folder / "colour.png")
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("L").save(folder / "grey.png")
    photo.convert("1").save(folder / "bilevel.png")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "sixteen_bit.png")
    photo.putalpha(Image.fromarray(pixels[..., 1]))
    photo.save(folder / "alpha.png")
    colour = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "rotated.jpg", exif=exif)
    colour.save(folder / "animated.gif", save_all=True, append_images=[Image.fromarray(pixels[::-1])])
    colour.save(folder / "photo.webp")
    colour.save(folder / "SHOUTING.JPG")
    colour.resize((1, 1)).save(folder / "one_pixel.png")
    colour.resize((200, 1)).save(folder / "line.png")
    return sorted(path.name for path in folder.iterdir())


def bad_images(good: Path, folder: Path) -> dict[str, str]:
    """Files that are no images, or not whole, with a word of the reason expected for each."""
    folder.mkdir()
    content = good.read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image at all\n" * 20)
    (folder / "huge.png").write_bytes(png_header(30_000, 30_000))
    (folder / "directory.jpg").mkdir()  # no file: not even listed
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    return {"truncated.jpg": "truncated", "empty.jpg": "empty", "text.jpg": "not an image", "huge.png": "large"} | {
        "gone.jpg": "does not exist"
    }


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size (900 megapixels) and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def mixed(images: Path, tmp_path: Path) -> tuple[Path, list[str], dict[str, str]]:
    """16 good photos, the odd and the bad ones; names of the odd, reasons of the bad."""
    root = tmp_path / "mixed"
    shutil.copytree(images / "coffee", root / "good")
    photo = Image.open(images / "astronaut" / "00.png").convert("RGB")
    return root, odd_images(photo, root / "odd"), bad_images(images / "astronaut" / "01.jpg", root / "bad")


def test_all_kinds_of_images(edgemim_here: Call, mixed: tuple[Path, list[str], dict[str, str]], tmp_path: Path) -> None:
    root, odd, bad = mixed
    run = Run(tmp_path / "run")
    ended = edgemim_here([*COMMAND, "--epochs", "20", "--data", root, "--out", run.folder, "--max-unreadable", "0.5"])
    assert ended.code == 0, ended.output
    counts = run.record["results"]["images"]
    assert counts["drawn"] == 20 * 4 * 8  # 36 images make four batches a pass
    reasons = {Path(entry["path"]).name: entry["reason"] for entry in counts["unreadable_files"]}
    assert reasons.keys() == bad.keys()  # every bad one, and no odd one
    for name, word in bad.items():
        assert word in reasons[name], (name, reasons[name])
    # Each pass leaves out 4 of the 36; in 20 of them each of the five is nearly always drawn, and never a good one.
    assert 0.7 * 20 * len(bad) < counts["unreadable_draws"] <= 1.5 * 20 * len(bad)
    assert len(odd) == 15


def test_one_bad_image_of_each_kind_at_a_time_stays_under_the_limit(
    edgemim_here: Call, mixed: tuple[Path, list[str], dict[str, str]], images: Path, tmp_path: Path
) -> None:
    """Odd images alone bring no unreadable draw, at a limit of none."""
    root, odd, _ = mixed
    shutil.rmtree(root / "bad")
    run = Run(tmp_path / "run")
    ended = edgemim_here([*COMMAND, "--epochs", "10", "--data", root, "--out", run.folder, "--max-unreadable", "0"])
    assert ended.code == 0, ended.output
    assert run.record["results"]["images"] == {"drawn": 10 * 3 * 8, "unreadable_draws": 0, "unreadable_files": []}
    assert len(odd) == 15


@pytest.mark.parametrize("limit", [None, 0.02, 0.1])
def test_too_many_bad_images_stop_the_run(
    edgemim_here: Call, images: Path, tmp_path: Path, limit: float | None
) -> None:
    """Two of 64 (3.1 %) are over the limit of 1 % and over 2 %, and under 10 %."""
    data, run = Path(shutil.copytree(images, tmp_path / "data")), Run(tmp_path / "run")
    for path in sorted((data / "rocket").iterdir())[:2]:
        path.write_bytes(path.read_bytes()[:200])
    words = [*COMMAND, "--epochs", "4", "--data", data, "--out", run.folder]
    ended = edgemim_here([*words, *(["--max-unreadable", str(limit)] if limit else [])])
    counts = run.record["results"]["images"]
    assert counts["unreadable_draws"] >= 2
    if limit == 0.1:
        assert ended.code == 0, ended.output
        assert counts["drawn"] == 4 * 64
        return
    ended.refused(
        "cannot be read", f"limit {limit or 0.01:.1%}", str(data / "rocket"), "data check", "--max-unreadable"
    )
    assert run.record["status"] == "failed"
    assert 64 <= counts["drawn"] < 4 * 64  # after a fair sample, before the end


def test_a_whole_class_of_bad_images_and_nothing_but_bad_ones(edgemim_here: Call, images: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(images, tmp_path / "data"))
    for path in (data / "rocket").iterdir():
        path.write_bytes(b"")
    edgemim_here([*COMMAND, "--epochs", "4", "--data", data, "--out", tmp_path / "a"]).refused(
        "cannot be read", "empty"
    )
    for path in data.glob("*/*"):
        path.write_bytes(b"")
    ended = edgemim_here([*COMMAND, "--epochs", "4", "--data", data, "--out", tmp_path / "b"])
    ended.refused("images in a row could not be read", "data check")


def test_an_image_that_vanishes_meanwhile_is_counted(edgemim_here: Call, images: Path, tmp_path: Path) -> None:
    data, run = Path(shutil.copytree(images, tmp_path / "data")), Run(tmp_path / "run")
    words = [*COMMAND, "--epochs", "60", "--data", data, "--out", run.folder, "--max-unreadable", "0.1"]
    gone = data / "chelsea" / "00.png"

    def vanish() -> None:
        while run.step < 16:
            time.sleep(0.01)
        gone.unlink()

    other = threading.Thread(target=vanish, daemon=True)
    other.start()
    ended = edgemim_here(words)
    other.join()
    assert ended.code == 0, ended.output
    (entry,) = run.record["results"]["images"]["unreadable_files"]
    assert entry == {"path": str(gone), "reason": "does not exist"}
