"""The folder layouts of tracking datasets, each read into sequences; with `frames=False` the annotations alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edgemim.config import suggest
from edgemim.edge.tracking.annotations import (
    Annotations,
    JsonFile,
    Layout,
    either_flag,
    frame_number,
    names_of_split,
    read_flags,
    stated_resolution,
)
from edgemim.edge.tracking.sequences import Sequence, SequenceError, make_sequence, natural_key
from edgemim.errors import UserError

# Frames of the OTB sequences that their authors use in part (first, last), counted by the numbers in the files' names.
_OTB_FRAMES = {
    "David": (300, 770),
    "BlurCar1": (247, 988),
    "BlurCar3": (3, 359),
    "BlurCar4": (18, 397),
    "Diving": (1, 215),
    "Football1": (1, 74),
    "Freeman3": (1, 460),
    "Freeman4": (1, 283),
    "Tiger1": (6, 354),
}
# First frames of the UAV123 sequences that are later parts of a longer video (the dataset's configSeqs.m).
_UAV_STARTS = {
    "bird1": (1, 775, 1573),
    "car1": (1, 751, 1627),
    "car6": (1, 487, 1807, 2953, 3925),
    "car8": (1, 1357),
    "car16": (1, 415),
    "group1": (1, 1333, 2515, 3925),
    "group2": (1, 907, 1771),
    "group3": (1, 1567, 2827, 4369),
    "person2": (1, 1189),
    "person4": (1, 1501),
    "person5": (1, 877),
    "person7": (1, 1249),
    "person8": (1, 1075),
    "person12": (1, 601),
    "person14": (1, 847, 1813),
    "person17": (1, 1501),
    "person19": (1, 1243, 2791),
    "truck4": (1, 577),
    "uav1": (1, 1555, 2473),
}
_BOX_FILES = ("groundtruth.txt", "groundtruth_rect.txt", "boxes.txt")


class Lasot(Annotations):
    """LaSOT: CLASS/CLASS-N/{img/, groundtruth.txt, full_occlusion.txt, out_of_view.txt}, with or without the class folder;
    or its evaluation toolkit's annotations: SEQUENCE.txt beside absent/SEQUENCE.txt, no frames.

    A split is a list of names in the root: testing_set.txt or training_set.txt, as the dataset ships them.
    """

    def names(self) -> list[str]:
        """The sequences found, or those of the split that are."""
        found = self._folders() or self._flat()
        if not self.split:
            return sorted(found, key=natural_key)
        return names_of_split(self.root, self.split, found, {"test": "testing_set.txt", "train": "training_set.txt"})

    def read(self, name: str) -> Sequence:
        """One sequence from either form."""
        folder = next(
            (path for path in (self.root / name.rpartition("-")[0] / name, self.root / name) if path.is_dir()), None
        )
        if folder is None:
            return self._read_flat(name)
        annotation = folder / "groundtruth.txt"
        boxes = self.boxes_in(name, annotation)
        flags = (read_flags(name, folder / f"{kind}.txt") for kind in ("full_occlusion", "out_of_view"))
        absent = either_flag(name, *flags)
        return make_sequence(name, annotation, boxes, self.frames_in(folder / "img"), absent=absent)

    def _read_flat(self, name: str) -> Sequence:
        annotation = self.root / f"{name}.txt"
        if self.frames:
            raise SequenceError(
                f"sequence {name}: {self.root} holds annotations without frames; give LaSOT's own folders"
            )
        flags = read_flags(name, self.root / "absent" / f"{name}.txt")
        return make_sequence(name, annotation, self.boxes_in(name, annotation), None, absent=flags)

    def _folders(self) -> list[str]:
        return [path.parent.name for depth in ("*", "*/*") for path in self.root.glob(f"{depth}/groundtruth.txt")]

    def _flat(self) -> list[str]:
        return [path.stem for path in self.root.glob("*.txt") if not path.stem.endswith("_set")]


class Otb(Annotations):
    """OTB: SEQUENCE/{img/, groundtruth_rect.txt}; two targets have groundtruth_rect.1.txt and .2.txt, read as SEQUENCE_1
    and SEQUENCE_2. The root may be a JSON file of annotations (see `JsonFile`) in the folder of the sequences."""

    def names(self) -> list[str]:
        """One name for each annotation that is not empty (that of Human4's first target is)."""
        return sorted(self._files(), key=natural_key)

    def read(self, name: str) -> Sequence:
        """One target of one video, of the frames that the benchmark uses."""
        annotation = self._files()[name]
        boxes, folder = self.boxes_in(name, annotation), annotation.parent
        frames = self.frames_in(folder / "img", folder)
        first, last = _OTB_FRAMES.get(folder.name, (0, 0))
        if last:
            # Tiger1's annotation begins before the frames that are used.
            boxes = boxes[-(last - first + 1) :]
            frames = frames and tuple(path for path in frames if first <= frame_number(path) <= last)
        return make_sequence(name, annotation, boxes, frames)

    def _files(self) -> Mapping[str, Path]:
        found = {}
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir()):
            files = sorted(folder.glob("groundtruth_rect*.txt"))
            for path in files:
                target = path.name.split(".")[1] if path.name.count(".") == 2 else ""
                if path.stat().st_size:
                    found[f"{folder.name}_{target}" if target and len(files) > 1 else folder.name] = path
        return found


class Got10k(Annotations):
    """GOT-10k: SPLIT/SEQUENCE/{00000001.jpg, groundtruth.txt, absence.label, cover.label, meta_info.ini}, names in list.txt.

    The root may be the split's own folder. Test sequences have the starting box alone.
    """

    def names(self) -> list[str]:
        """The names in list.txt, else every folder with an annotation."""
        folder = self._folder()
        listed = folder / "list.txt"
        if listed.is_file():
            return listed.read_text().split()
        return sorted((path.parent.name for path in folder.glob("*/groundtruth.txt")), key=natural_key)

    def read(self, name: str) -> Sequence:
        """One sequence with its flags of absence and its visible eighths, where they are given."""
        folder = self._folder() / name
        annotation = folder / "groundtruth.txt"
        absent, cover = (read_flags(name, folder / f"{kind}.label") for kind in ("absence", "cover"))
        return make_sequence(
            name,
            annotation,
            self.boxes_in(name, annotation),
            self.frames_in(folder),
            absent=absent,
            cover=cover,
            size_px=stated_resolution(folder / "meta_info.ini"),
        )

    def _folder(self) -> Path:
        split = self.split or "val"
        if (self.root / split).is_dir():
            return self.root / split
        if self.split and self.root.name != self.split:
            raise UserError(f"{self.root} has no folder '{self.split}'; give --split train, val or test as it is there")
        return self.root


class Uav123(Annotations):
    """UAV123: anno/UAV123/SEQUENCE.txt and data_seq/UAV123/VIDEO/; several sequences are parts of one video."""

    def names(self) -> list[str]:
        """One name for each annotation."""
        return sorted((path.stem for path in self._annotations().glob("*.txt")), key=natural_key)

    def read(self, name: str) -> Sequence:
        """One sequence: of a video in parts, the frames from its start on, as many as there are rows."""
        annotation = self._annotations() / f"{name}.txt"
        boxes = self.boxes_in(name, annotation)
        video, _, part = name.rpartition("_")
        starts = _UAV_STARTS.get(video, ()) if part.isdecimal() else ()
        frames = self.frames_in(*(self.root / up / (video if starts else name) for up in ("data_seq/UAV123", ".")))
        if starts and frames:
            if int(part) > len(starts):
                raise SequenceError(f"sequence {name}: UAV123 cuts {video} into {len(starts)} parts")
            first = starts[int(part) - 1]
            frames = tuple(path for path in frames if first <= frame_number(path) < first + len(boxes))
        return make_sequence(name, annotation, boxes, frames)

    def _annotations(self) -> Path:
        return next((path for path in (self.root / "anno/UAV123", self.root / "anno") if path.is_dir()), self.root)


class Vot(Annotations):
    """VOT: SEQUENCE/{color/ or images, groundtruth.txt with polygons}, names in list.txt; a polygon's upright box is read."""

    def names(self) -> list[str]:
        """The names in list.txt, else every folder with an annotation."""
        listed = self.root / "list.txt"
        if listed.is_file():
            return listed.read_text().split()
        return sorted((path.parent.name for path in self.root.glob("*/groundtruth.txt")), key=natural_key)

    def read(self, name: str) -> Sequence:
        """One sequence; rows without area mark absence no more than elsewhere."""
        folder = self.root / name
        annotation = folder / "groundtruth.txt"
        boxes = self.boxes_in(name, annotation, polygons=True)
        return make_sequence(name, annotation, boxes, self.frames_in(folder / "color", folder))


class Folder(Annotations):
    """Any sequences: SEQUENCE/{img/ or images, groundtruth.txt, groundtruth_rect.txt or boxes.txt}, boxes or polygons.

    The root may itself be one sequence.
    """

    def names(self) -> list[str]:
        """Every folder with a file of boxes."""
        if self._annotation(self.root):
            return [self.root.resolve().name]
        inside = [path for path in self.root.iterdir() if path.is_dir() and self._annotation(path)]
        return sorted((path.name for path in inside), key=natural_key)

    def read(self, name: str) -> Sequence:
        """One sequence."""
        folder = self.root if self._annotation(self.root) else self.root / name
        annotation = self._annotation(folder)
        if annotation is None:
            raise SequenceError(f"sequence {name}: {folder} holds none of {', '.join(_BOX_FILES)}")
        boxes = self.boxes_in(name, annotation, polygons=True)
        return make_sequence(name, annotation, boxes, self.frames_in(folder / "img", folder / "color", folder))

    def _annotation(self, folder: Path) -> Path | None:
        return next((path for file in _BOX_FILES if (path := folder / file).is_file()), None)


LAYOUTS: Mapping[str, Callable[..., Layout]] = {
    "lasot": Lasot,
    "otb": Otb,
    "got10k": Got10k,
    "uav123": Uav123,
    "vot": Vot,
    "folder": Folder,
}


def open_layout(layout: str, root: Path, *, split: str = "", frames: bool = True) -> Layout:
    """The reader of a dataset. A JSON file as `root` is read as such whatever the layout.

    Raises UserError on an unknown layout or a root that is not there.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown dataset {layout!r}{suggest(layout, LAYOUTS)}; known: {', '.join(LAYOUTS)}")
    if root.suffix == ".json" and root.is_file():
        return JsonFile(root, frames=frames)
    if not root.is_dir():
        raise UserError(f"no folder at {root}; give the root of the {layout} dataset")
    return LAYOUTS[layout](root, split=split, frames=frames)


def open_sequences(
    layout: str, root: Path, *, split: str = "", names: Iterable[str] = (), frames: bool = True
) -> list[Sequence]:
    """All sequences of a dataset, or the named ones. `frames=False` reads annotations alone.

    Raises UserError if there is none or a name is unknown; SequenceError on the first one at fault.
    """
    reader = open_layout(layout, root, split=split, frames=frames)
    return [reader.read(name) for name in choose_names(reader, names, root)]


def choose_names(reader: Layout, names: Iterable[str], where: Path) -> list[str]:
    """The names asked for, or all. Raises UserError if there is none, or no such one."""
    known, chosen = reader.names(), list(names)
    if not known:
        raise UserError(f"no sequence found in {where}; its layout is not the one of --dataset")
    for name in chosen:
        if name not in known:
            raise UserError(f"no sequence {name!r} in {where}{suggest(name, known)}; it holds {len(known)} others")
    return chosen or known
