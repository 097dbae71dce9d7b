"""A fixed list of images with labels, wherever their bytes lie: what loaders, probes and checks ask for."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from edgemim.data.index import FlatIndex
from edgemim.edge.images import MAX_PIXELS, ImageError, load_image
from edgemim.errors import UserError


class ImageSet:
    """Images in a fixed order; a sub-class says where the bytes of each lie.

    `classes` are the names of the labels, empty where the set is not labelled throughout (`unlabelled` then says why).
    `labels` is int32 [n], -1 where there is no label. `fingerprint` names the list of images and labels (not the
    pixels). `root` is what the user named. Pickling passes the name of the index file, so workers share one copy.

    The index holds `labels` and, in its meta, `classes`, `fingerprint`, and where it applies `unlabelled` and
    `numbered`: that the labels are numbers, whose names may be known elsewhere.
    """

    def __init__(self, root: Path, index: FlatIndex) -> None:
        self.root = root
        self.classes: tuple[str, ...] = tuple(index.meta["classes"])
        self.labels: np.ndarray = index.arrays["labels"]
        self.fingerprint: str = index.meta["fingerprint"]
        self._index = index
        self._order: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, images={len(self)}, classes={len(self.classes)})"

    def __getstate__(self) -> dict[str, object]:
        # Labels that are the index's own travel with it, by name.
        own = self.labels is self._index.arrays["labels"]
        return {**self.__dict__, "labels": None} if own else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.labels is None:
            self.labels = self._index.arrays["labels"]

    def name(self, i: int) -> str:
        """What a message calls image `i`, 0 <= i < len: its path, or `shard.tar:key.jpg`."""
        raise NotImplementedError

    def read(self, i: int) -> bytes:
        """The encoded image. Raises ImageError or OSError if it is not there."""
        raise NotImplementedError

    def image(self, i: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The decoded image, uint8 [h, w, 3], upright RGB. Raises ImageError or OSError, whatever is wrong with it."""
        data = self.read(i)
        if not data:
            raise ImageError(self.name(i), "the file is empty")
        try:
            return load_image(data, max_pixels=max_pixels)
        except ImageError as error:
            raise ImageError(self.name(i), error.reason) from error

    def label(self, i: int) -> int:
        """Class number of image `i`, -1 if there is none."""
        return int(self.labels[i])

    @property
    def unlabelled(self) -> str:
        """Why the set has no classes, and the remedy."""
        return self._index.meta.get("unlabelled") or f"{self.root} has no labels"

    def empty_class(self) -> str | None:
        """A class that no image is of, with the remedy, as a sentence; None if there is none such."""
        counts = np.bincount(self.labels, minlength=len(self.classes)) if self.classes else np.ones(0)
        if counts.all():
            return None
        name = self.classes[int(np.argmin(counts != 0))]
        return f"class {name!r} has no image in {self.root}; add some, or name the other classes by --classes FILE"

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The same set cut down to the given images, in the given order."""
        chosen = np.asarray(indices, dtype=np.int64)
        part = copy.copy(self)
        part._order = chosen if self._order is None else self._order[chosen]
        part.labels = self.labels[chosen]
        part.fingerprint = fingerprint_of([_bytes(self.fingerprint), chosen], ())
        return part

    def with_classes(self, classes: Sequence[str], file: Path | None = None) -> Self:
        """The same set with labels numbered as in `classes`, e.g. a validation set as its training set.

        Args:
            classes: names of all classes in the order of their numbers.
            file: where they come from, if from a file, for messages.

        Raises:
            UserError: if the set is not labelled, or has a class that is not among `classes`.
        """
        names = self._class_names()
        if not names:
            raise UserError(self.unlabelled)
        numbers = self._numbers(names, classes)
        # A lone folder's images have no label, and yet one class.
        for number in np.unique(np.maximum(self.labels, 0)).tolist():
            if numbers[number] < 0:
                raise UserError(self._unknown(number, names[number], len(classes), file))
        part = self.select(np.arange(len(self)))
        part.classes = tuple(classes)
        part.labels = np.array(numbers, np.int32)[np.maximum(self.labels, 0)]
        part.fingerprint = fingerprint_of([_bytes(self.fingerprint)], part.classes)
        return part

    def _numbers(self, names: Sequence[str], classes: Sequence[str]) -> list[int]:
        """For each of `names` its number among `classes`, -1 where it is none of them."""
        place = {name: number for number, name in enumerate(classes)}
        numbers = [place.get(name, -1) for name in names]
        if self._index.meta.get("numbered") and min(numbers) < 0 and all(map(is_number, names)):
            return [int(name) if 0 <= int(name) < len(classes) else -1 for name in names]
        return numbers

    def _unknown(self, number: int, name: str, known: int, file: Path | None) -> str:
        first = int(np.argmax(np.maximum(self.labels, 0) == number))
        where = f" in {file}; add it there, or remove its images" if file else "; give images of these classes only"
        return (
            f"{self.root} holds class {name!r}, which is not one of the {known} known classes{where} "
            f"(first: {self._at(first)})"
        )

    def _class_names(self) -> tuple[str, ...]:
        """The names of the labels, also where they alone make no set of classes."""
        return self.classes

    def _at(self, i: int) -> str:
        """Where the label of image `i` stands."""
        return self.name(i)

    def _place(self, i: int) -> int:
        """Row of the index that image `i` is."""
        return i if self._order is None else int(self._order[i])

    def _text(self, name: str, i: int) -> str:
        """Entry of image `i` in the texts that `pack_texts` put into the index under `name`."""
        return unpack_text(self._index.arrays, name, self._place(i))


class ImageFiles(ImageSet):
    """Images that are files of their own; the index holds their paths, relative to `base` or absolute."""

    @property
    def base(self) -> Path:
        """Folder that relative paths start from."""
        return self.root

    def path(self, i: int) -> Path:
        """Path of image `i`, 0 <= i < len."""
        return self.base / self._text("paths", i)

    def name(self, i: int) -> str:
        return str(self.path(i))

    def read(self, i: int) -> bytes:
        path = self.path(i)
        # Opening a pipe or a device could wait for ever.
        if not path.is_file():
            raise ImageError(str(path), "is not a regular file" if path.exists() else "does not exist")
        return path.read_bytes()

    def image(self, i: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        return load_image(self.path(i), max_pixels=max_pixels)


def pack_texts(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Many texts as two flat arrays of an index, `name` and `name_offsets`."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    lengths = np.fromiter(map(len, encoded), np.uint64, len(encoded))
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)])
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_offsets": offsets}


def unpack_text(arrays: dict[str, np.ndarray], name: str, place: int) -> str:
    """One of the texts that `pack_texts` packed."""
    offsets = arrays[f"{name}_offsets"]
    text = arrays[name][int(offsets[place]) : int(offsets[place + 1])]
    return text.tobytes().decode("utf-8", "surrogateescape")


def fingerprint_of(parts: Sequence[np.ndarray], classes: Sequence[str]) -> str:
    """A name for arrays and class names: equal for equal ones alone."""
    digest = hashlib.blake2b("\0".join(classes).encode("utf-8", "surrogateescape"), digest_size=16)
    for part in parts:
        digest.update(part.view(np.uint8).data)
    return digest.hexdigest()


def number_texts(texts: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """int32 [n] and the different texts in order: as numbers if all are whole numbers, else by their letters."""
    found = sorted(set(texts))
    if all(map(is_number, found)):
        found.sort(key=int)
    place = {text: number for number, text in enumerate(found)}
    return np.fromiter((place[text] for text in texts), np.int32, len(texts)), tuple(found)


def is_number(text: str) -> bool:
    """Whether a text is a whole number written in digits."""
    return text.isascii() and text.removeprefix("-").isdigit()


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
