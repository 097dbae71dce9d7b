"""What one image file is: format, size, content hash, what is odd about it, why it cannot be read."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from edgemim.data.image_set import ImageFiles, ImageSet
from edgemim.data.workers import start_worker
from edgemim.edge.images import ImageError, load_image
from edgemim.errors import EdgemimError

_CHUNK = 16
_MAX_BYTES = 1 << 29
_ORIENTATION = 0x0112
_DEEP_MODES = ("I", "F")
# Cameras store a second picture in a JPEG (MPO); both are read alike, so the suffix is no mistake.
_SAME_FORMAT = {"MPO": "JPEG"}


class FileLimits(NamedTuple):
    """What counts as odd or as unreadable."""

    max_pixels: int = 128_000_000
    tiny_side: int = 32
    huge_pixels: int = 25_000_000
    decode: bool = True


class FileFacts(NamedTuple):
    """What one file is; `error` says why it cannot be read, `odd` what is unusual about it."""

    bytes: int = 0
    digest: bytes = b""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    odd: tuple[str, ...] = ()
    error: str = ""


def inspect_file(path: str, limits: FileLimits) -> FileFacts:
    """Read one file: header, pixels (unless `limits.decode` is off) and content hash. Never raises for a bad file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return FileFacts(error="not a regular file")
        if status.st_size > _MAX_BYTES:
            return FileFacts(status.st_size, error=f"file of {status.st_size:,} bytes; the limit is {_MAX_BYTES:,}")
        data = Path(path).read_bytes()
    except OSError as error:
        return FileFacts(error=error.strerror or str(error))
    return inspect_bytes(data, path, limits)


def inspect_bytes(data: bytes, name: str, limits: FileLimits) -> FileFacts:
    """The facts of an encoded image; its name's suffix, where it has one, is compared with what it holds."""
    facts = FileFacts(len(data), hashlib.blake2b(data, digest_size=16).digest())
    try:
        facts = _read_header(data, name, facts, limits)
        unread = not limits.decode and facts.width * facts.height <= limits.max_pixels
    except Exception:  # a decoder may raise anything on hostile bytes; load_image gives it a sentence
        unread = False
    return facts if unread else facts._replace(error=_fault(data, limits))


def _fault(data: bytes, limits: FileLimits) -> str:
    if not data:
        return "the file is empty"
    try:
        load_image(data, max_pixels=limits.max_pixels)
    except ImageError as error:
        return error.reason
    return ""


def inspect_files(root: Path, names: Sequence[str], limits: FileLimits, workers: int) -> Iterator[FileFacts]:
    """`inspect_file` over many files in order, in `workers` processes (0: in this one)."""
    return _in_order(partial(_inspect_chunk, str(root), limits), names, workers)


def inspect_set(images: ImageSet, limits: FileLimits, workers: int) -> Iterator[FileFacts]:
    """The facts of each image of a set in order, wherever its bytes lie."""
    return _in_order(partial(_inspect_images, images, limits), range(len(images)), workers)


def _in_order(inspect: Callable[[Any], list[FileFacts]], items: Sequence[Any], workers: int) -> Iterator[FileFacts]:
    chunks = (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
    if workers == 0:
        for chunk in chunks:
            yield from inspect(chunk)
        return
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    try:
        # A short window: a million pending futures would take more memory than the answers.
        window: deque[Future[list[FileFacts]]] = deque()
        for chunk in chunks:
            window.append(pool.submit(inspect, chunk))
            if len(window) > 4 * workers:
                yield from window.popleft().result()
        while window:
            yield from window.popleft().result()
    except BrokenProcessPool as error:
        raise EdgemimError("a checking process was killed (out of memory?); try again with --workers 0") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _inspect_chunk(root: str, limits: FileLimits, names: Sequence[str]) -> list[FileFacts]:
    return [inspect_file(os.path.join(root, name), limits) for name in names]


def _inspect_images(images: ImageSet, limits: FileLimits, indices: Sequence[int]) -> list[FileFacts]:
    if isinstance(images, ImageFiles):
        return [inspect_file(str(images.path(i)), limits) for i in indices]
    found = []
    for i in indices:
        try:
            found.append(inspect_bytes(images.read(i), images.name(i), limits))
        except ImageError as error:
            found.append(FileFacts(error=error.reason))
        except OSError as error:
            found.append(FileFacts(error=error.strerror or str(error)))
    return found


def _read_header(data: bytes, path: str, facts: FileFacts, limits: FileLimits) -> FileFacts:
    with warnings.catch_warnings():
        # Its size is judged here, by the user's limit.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            facts = facts._replace(
                format=image.format or "unknown", mode=image.mode, width=image.width, height=image.height
            )
            try:
                return facts._replace(odd=tuple(_oddities(image, data, path, limits)))
            except Exception:  # broken EXIF or a broken list of frames; the pixels may be whole
                return facts._replace(odd=("damaged metadata",))


def _oddities(image: Image.Image, data: bytes, path: str, limits: FileLimits) -> Iterator[str]:
    if image.mode in _DEEP_MODES or image.mode.startswith("I;16") or _is_deep_png(data):
        yield "16-bit"
    if image.mode == "CMYK":
        yield "CMYK"
    if image.format not in _SAME_FORMAT and getattr(image, "n_frames", 1) > 1:
        yield "animated"
    if min(image.size) < limits.tiny_side:
        yield f"tiny: {image.width}×{image.height}"
    if image.width * image.height > limits.huge_pixels:
        yield f"huge: {image.width}×{image.height}"
    if image.getexif().get(_ORIENTATION, 1) not in (0, 1):
        yield "EXIF-rotated"
    suffix = os.path.splitext(path)[1].lower()
    named = Image.registered_extensions().get(suffix, "")
    if suffix and " " not in suffix and named != _SAME_FORMAT.get(image.format or "", image.format):
        yield f"wrong suffix: {suffix} holds {image.format}"


def _is_deep_png(data: bytes) -> bool:
    """Pillow opens a 16-bit colour PNG as 8-bit RGB without a word; the header's bit depth tells."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10"
