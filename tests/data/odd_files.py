"""A folder with every kind of file that users' folders hold."""

import os
import struct
import zlib

import numpy as np
from PIL import Image


def noise(height=64, width=48, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def deep_colour_png(path):
    """16-bit RGB, which Pillow can read but not write."""
    rows = np.random.default_rng(5).integers(0, 65536, (40, 40, 3)).astype(">u2")
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b"")
    )


GOOD = ("0.jpg", "1.jpg", "2.jpg")
UNREADABLE = {
    "bomb.png": "too large",
    "cut.jpg": "truncated",
    "dangling.jpg": "No such file",
    "pipe.jpg": "not a regular file",
    "text.jpg": "not an image",
    "zero.jpg": "empty",
    "zero2.jpg": "empty",
}
ODD = {
    "anim.gif": ("animated",),
    "cmyk.jpg": ("CMYK",),
    "deep_colour.png": ("16-bit",),
    "deep_grey.png": ("16-bit",),
    "long.png": ("tiny: 900×20", "huge: 900×20"),
    "one.png": ("tiny: 1×1",),
    "really.png": ("wrong suffix: .png holds JPEG",),
    "turned.jpg": ("EXIF-rotated",),
}
HUGE_PIXELS = 17_000


def odd_folder(folder):
    """Fill `folder` with GOOD, UNREADABLE and ODD files and two that are no images."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(GOOD):
        noise(seed=seed).save(folder / name)
    (folder / "bomb.png").write_bytes(png_header(30_000, 30_000))
    (folder / "cut.jpg").write_bytes((folder / "1.jpg").read_bytes()[:900])
    (folder / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "text.jpg").write_text("hello")
    (folder / "zero.jpg").touch()
    (folder / "zero2.jpg").touch()
    noise(seed=3).save(folder / "anim.gif", save_all=True, append_images=[noise(seed=4), noise(seed=5)])
    noise(seed=6).convert("CMYK").save(folder / "cmyk.jpg")
    deep_colour_png(folder / "deep_colour.png")
    grey = np.random.default_rng(7).integers(0, 65536, (40, 40), dtype=np.uint16)
    Image.fromarray(grey).save(folder / "deep_grey.png")
    noise(20, 900, seed=8).save(folder / "long.png")
    noise(1, 1, seed=9).save(folder / "one.png")
    (folder / "really.png").write_bytes((folder / "0.jpg").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(seed=10).save(folder / "turned.jpg", exif=exif)
    (folder / "readme.txt").write_text("hello")
    (folder / "noext").write_text("hello")
    return folder
