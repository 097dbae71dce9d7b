"""Tar shards written from any set of images: the same bytes each time, a file whole or not there, resumable."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgemim.data.image_set import ImageSet
from edgemim.data.sources import CLASSES_FILE
from edgemim.edge.images import IMAGE_SUFFIXES, ImageError
from edgemim.errors import UserError
from edgemim.run import write_text

PLAN_FILE = "shards.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_STEM = 60


class ShardWriter:
    """Writes the images of each split, in their order, into files of `per_shard` images below `folder`.

    Image 7 of class 2 becomes `00000007-NAME.jpg`, its bytes as they were, and `00000007-NAME.cls` with the number 2; the
    classes' names stand in classes.json beside the shards. A split has a folder of its own. `shards.json` says what the
    shards are made of; a folder that says otherwise is refused.
    """

    def __init__(self, folder: Path, sets: Mapping[str, ImageSet], per_shard: int) -> None:
        self.folder, self.sets, self.per_shard = folder, sets, per_shard
        self.plan: dict[str, Any] = {
            "made_by": "edgemim data shard",
            "per_shard": per_shard,
            "splits": {split: _described(images) for split, images in sets.items()},
        }

    def begin(self, *, resume: bool = False) -> None:
        """Write the plan and the class names. Raises UserError if the folder has another plan, or on a full disk."""
        path = self.folder / PLAN_FILE
        if resume and not path.exists() and any(entry.name != ".lock" for entry in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds no shards to go on with ({PLAN_FILE} is missing); give another --out")
        if resume and path.exists():
            try:
                found = json.loads(path.read_text())
            except (OSError, ValueError):
                found = None
            if found != self.plan:
                raise UserError(
                    f"{self.folder} holds shards of other images or of another --per-shard; give another --out, "
                    "or --overwrite to lose what is in it"
                )
        for split, images in self.sets.items():
            (self.folder / split).mkdir(parents=True, exist_ok=True)
            if images.classes:
                write_text(self.folder / split / CLASSES_FILE, json.dumps(images.classes, indent=1) + "\n")
        write_text(path, json.dumps(self.plan, indent=1) + "\n")

    def missing(self) -> list[tuple[str, int]]:
        """(split, number) of each shard that is not there yet, in their order."""
        return [shard for shard in self._shards() if not self.path(*shard).exists()]

    def path(self, split: str, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / split / f"{split or 'all'}-{number:06d}.tar"

    def write(self, split: str, number: int) -> None:
        """Write one shard beside its place, then put it there. Raises UserError naming what cannot be read or written."""
        path, images = self.path(split, number), self.sets[split]
        temporary = path.with_name(path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                # The plainest format, no owner and no time: equal images make equal files.
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                    start = number * self.per_shard
                    for i in range(start, min(start + self.per_shard, len(images))):
                        for name, content in _members(images, i):
                            entry = tarfile.TarInfo(name)
                            entry.size = len(content)
                            archive.addfile(entry, io.BytesIO(content))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; free space, then go on with --resume"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _shards(self) -> Iterator[tuple[str, int]]:
        for split, images in self.sets.items():
            for number in range(-(-len(images) // self.per_shard)):
                yield split, number


def sets_to_write(sets: Mapping[str, ImageSet]) -> dict[str, ImageSet]:
    """The splits as shards can hold them: with one numbering of the classes, the training part's.

    A single split is no split. Raises UserError if there is no training part among several, or a class that it lacks.
    """
    if len(sets) == 1:
        return {"": next(iter(sets.values()))}
    if "train" not in sets:
        raise UserError(f"there is no split 'train' among {', '.join(sets)}; give the set of one split")
    train, found = sets["train"], dict(sets)
    for split, images in sets.items():
        if split != "train" and train.classes:
            try:
                found[split] = images.with_classes(train.classes)
            except UserError:
                if images.classes:
                    raise  # it is labelled otherwise; a split without labels stays without
    return found


def _described(images: ImageSet) -> dict[str, Any]:
    return {"images": len(images), "classes": len(images.classes), "fingerprint": images.fingerprint}


def _members(images: ImageSet, i: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of one image's members."""
    name = images.name(i)
    try:
        content = images.read(i)
    except ImageError as error:
        raise UserError(f"{error}; remove it from the set, then start again") from error
    except OSError as error:
        raise UserError(
            f"cannot read {name}: {error.strerror or error}; repair or remove it, then start again"
        ) from error
    stem, suffix = os.path.splitext(re.split(r"[/:]", name)[-1])
    suffix = suffix.lower() if suffix.lower() in IMAGE_SUFFIXES else _suffix_of(content)
    key = f"{i:08d}-{_UNSAFE.sub('_', stem)[:_MAX_STEM]}"
    yield key + suffix, content
    if images.classes:
        yield f"{key}.cls", str(images.label(i)).encode()


def _suffix_of(content: bytes) -> str:
    """By the first bytes, for rows that have no file name; what is none of these is read by its content anyway."""
    starts = {b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}
    return next((suffix for start, suffix in starts.items() if content.startswith(start)), ".jpg")
