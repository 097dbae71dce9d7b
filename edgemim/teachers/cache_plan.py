"""What a cache of a teacher's features would hold, and whether it may: identity, size and refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from edgemim.data.image_set import ImageSet
from edgemim.data.transforms import PretrainTransform
from edgemim.edge.images import ImageError
from edgemim.errors import UserError
from edgemim.teachers.store import store_name, total_bytes
from edgemim.teachers.teacher import Teacher

GIB = 2**30
_VERSION = 1
_SAMPLED_FILES = 8


def check_cacheable(view: PretrainTransform) -> None:
    """Raise UserError where an image would not look the same in every epoch."""
    odd = [
        f"transform.{key} {value}"
        for key, value, wrong in (
            ("crop", view.crop, view.crop != "none"),
            ("flip", str(view.flip).lower(), view.flip),
            ("interpolation", view.interpolation, view.interpolation == "random"),
        )
        if wrong
    ]
    if odd:
        raise UserError(
            f"a teacher's features can be cached only where an image always looks the same, not with {' and '.join(odd)}; "
            "give --transform.crop none --transform.no-flip, or leave --teacher-cache out"
        )


def cache_identity(
    teacher: Teacher, folder: ImageSet, view: PretrainTransform, image_size: int
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """What the rows are of, by content, and the shape (images, tokens, channels) of the store."""
    identity = {
        "version": _VERSION,
        "timm": timm.__version__,
        "teacher": teacher.summary,
        "network": type(teacher.model).__name__,
        "function": _function_digest(teacher),
        "stage": teacher.stage,
        "input_px": list(teacher.input_size),
        "mean": teacher.mean.flatten().tolist(),
        "std": teacher.std.flatten().tolist(),
        "image_px": image_size,
        "interpolation": view.interpolation,
        "list": folder.fingerprint,
        "files": _files_digest(folder),
    }
    return identity, (len(folder), teacher.grid[0] * teacher.grid[1], teacher.channels)


def check_room(root: Path, identity: Mapping[str, Any], shape: tuple[int, int, int], limit_gib: float) -> str:
    """One sentence that estimates the store. Raises UserError if it exceeds the limit or what the disk has free."""
    images, tokens, channels = shape
    folder, size = root / store_name(identity, shape), total_bytes(shape)
    text = f"{images:,} images × {tokens} tokens × {channels} channels in float16 are {size / GIB:.3g} GiB"
    if size > limit_gib * GIB:
        raise UserError(
            f"the teacher cache would be too large: {text}, the limit is {limit_gib:g}; give --teacher-cache-limit-gib "
            f"{max(1, -(-size // GIB))}, another stage of the teacher, or no --teacher-cache"
        )
    there = folder / "rows"
    used = there.stat().st_blocks * 512 if there.is_file() else 0
    place = next((path for path in (root, *root.absolute().parents) if path.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    if size - used > free:
        raise UserError(
            f"the teacher cache does not fit: {text}, {used / GIB:.3g} of them there, and {place} has "
            f"{free / GIB:.3g} GiB free; give another --teacher-cache, or none"
        )
    return f"{text} (limit {limit_gib:g}, {free / GIB:.3g} free) in {folder}"


def _function_digest(teacher: nn.Module) -> str:
    """Of the weights, and of the numbers that a network is built with: heads, strides and the like leave no weight."""
    digest = hashlib.blake2b(digest_size=16)
    for name, module in teacher.named_modules():
        numbers = {key: str(value) for key, value in vars(module).items() if _plain(value) and not key.startswith("_")}
        digest.update(json.dumps([name, type(module).__name__, numbers], sort_keys=True).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return isinstance(value, (bool, int, float, str))


def _files_digest(folder: ImageSet) -> str:
    """Of a few files: folders may hold other images under the same names."""
    digest = hashlib.blake2b(digest_size=16)
    for index in np.unique(np.linspace(0, len(folder) - 1, _SAMPLED_FILES).astype(int)).tolist():
        try:
            digest.update(folder.read(index))
        except (ImageError, OSError):  # what cannot be read is replaced or skipped in training, too
            digest.update(b"unreadable")
    return digest.hexdigest()
