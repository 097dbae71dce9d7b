"""Where published segmentation sets keep images and masks: ADE20K, Pascal-VOC, CamVid, or plain pairs of folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edgemim.data.segmentation.classes import ClassList, find_classes, has_class_file
from edgemim.data.segmentation.masks import MaskCode
from edgemim.data.tree import find_splits
from edgemim.edge.images import IMAGE_SUFFIXES
from edgemim.errors import UserError

LayoutName = Literal["pairs", "ade20k", "voc", "camvid"]
Pair = tuple[Path, Path]

_MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
_CAMVID = "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()


@dataclass(frozen=True)
class Layout:
    """A set as it lies on disk: pairs of image and mask for each split, names of the classes, the masks' code."""

    name: LayoutName
    root: Path
    splits: dict[str, list[Pair]]
    classes: tuple[str, ...]
    code: MaskCode


def read_layout(
    root: Path, layout: LayoutName | None = None, classes: Path | None = None, *, known: tuple[str, ...] = ()
) -> Layout:
    """Find the images and masks below `root`, of the layout named or of the one that is recognised.

    Args:
        root: the folder of the set.
        layout: how it is laid out; None looks.
        classes: file with the class names, instead of the one in the folder.
        known: names that hold where there is no such file, for pairs of folders.

    Raises:
        UserError: if there is no such folder, no layout fits, an image has no mask, or class names are missing.
    """
    if not root.is_dir():
        raise UserError(f"no folder at {root}; give the folder of a segmentation set")
    chosen = layout or _recognise(root)
    if chosen is None:
        raise UserError(
            f"{root} is laid out like none of {', '.join(get_args(LayoutName))}; put images into {root}/images and masks "
            f"of the same names into {root}/masks, or below train/ and val/"
        )
    if chosen == "pairs":
        return _pairs(root, classes, known)
    return _READERS[chosen](root, classes)


def _recognise(root: Path) -> LayoutName | None:
    if (root / "SegmentationClass").is_dir() and (root / "JPEGImages").is_dir():
        return "voc"
    if (root / "annotations" / "training").is_dir() and (root / "images" / "training").is_dir():
        return "ade20k"
    if any((root / f"train{suffix}").is_dir() for suffix in ("annot", "_labels")) and (root / "train").is_dir():
        return "camvid"
    if _is_pair(root) or any(_is_pair(path) for path in find_splits(root).values()):
        return "pairs"
    return None


def _is_pair(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _pairs(root: Path, classes: Path | None, known: tuple[str, ...]) -> Layout:
    """images/ and masks/ with the same names, in the folder itself or in train/ and val/ (or test/)."""
    folders = {"train": root} if _is_pair(root) else find_splits(root)
    if not folders:
        raise UserError(f"{root} has no images/ and masks/, nor train/ and val/ with these; see --task.layout")
    # Of a set split in three, one part may be named alone: its class file lies beside it.
    above = _is_pair(root) and not has_class_file(root) and has_class_file(root.parent)
    holder = root.parent if above else root
    bare = known and classes is None and not has_class_file(holder)
    names = ClassList(known) if bare else find_classes(holder, classes)
    splits = {split: match(folder / "images", folder / "masks") for split, folder in folders.items()}
    return Layout("pairs", root, splits, names.names, MaskCode(len(names.names), colours=names.colours))


def _ade20k(root: Path, classes: Path | None) -> Layout:
    """images/ and annotations/, each with training/ and validation/; value 0 is no class, 1 the first (150 in all)."""
    table = root / "objectInfo150.txt"
    names = find_classes(root, classes or (table if table.is_file() else None)).names
    found = {"train": "training", "val": "validation"}
    splits = {
        split: match(root / "images" / folder, root / "annotations" / folder)
        for split, folder in found.items()
        if (root / "images" / folder).is_dir()
    }
    return Layout("ade20k", root, splits, names, MaskCode(len(names), shift=1, ignored=frozenset({0, 255})))


def _voc(root: Path, classes: Path | None) -> Layout:
    """JPEGImages/ and SegmentationClass/ with lists of names in ImageSets/Segmentation/; 21 classes, 255 is no class."""
    names = find_classes(root, classes).names if classes else tuple(_VOC)
    lists = root / "ImageSets" / "Segmentation"
    splits = {}
    for split in ("train", "val", "test"):
        path = lists / f"{split}.txt"
        if not path.is_file():
            continue
        stems = path.read_text().split()
        found = [(root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png") for stem in stems]
        # The test set's masks are not published.
        splits |= {split: found} if split != "test" or (found and found[0][1].is_file()) else {}
    if "train" not in splits:
        raise UserError(f"{lists}/train.txt is missing; Pascal-VOC lists its training images there")
    for pairs in splits.values():
        _refuse_missing(pairs)
    return Layout("voc", root, splits, names, MaskCode(len(names)))


def _camvid(root: Path, classes: Path | None) -> Layout:
    """train/ beside trainannot/ (numbers, 11 is void: SegNet's 11 classes), or beside train_labels/ (colours by
    class_dict.csv, masks end in _L); val and test alike."""
    numbers = (root / "trainannot").is_dir()
    folder_end, stem_end = ("annot", "") if numbers else ("_labels", "_L")
    splits = {
        split: match(root / split, root / f"{split}{folder_end}", stem_end)
        for split in ("train", "val", "test")
        if (root / split).is_dir() and (root / f"{split}{folder_end}").is_dir()
    }
    if "train" not in splits:
        raise UserError(f"{root} has no train/ beside trainannot/ or train_labels/, as CamVid is laid out")
    if not numbers:
        coloured = find_classes(root, classes)
        if coloured.colours is None:
            raise UserError(f"the masks in {root}/train_labels are colours; --task.classes must name class_dict.csv")
        return Layout("camvid", root, splits, coloured.names, MaskCode(len(coloured.names), colours=coloured.colours))
    names = find_classes(root, classes).names if classes else tuple(_CAMVID)
    return Layout("camvid", root, splits, names, MaskCode(len(names), ignored=frozenset({len(names), 255})))


_READERS: dict[LayoutName, Callable[[Path, Path | None], Layout]] = {
    "ade20k": _ade20k,
    "voc": _voc,
    "camvid": _camvid,
}


def match(images: Path, masks: Path, stem_end: str = "") -> list[Pair]:
    """Each image of a folder with the mask of its name, sorted. Raises UserError if there is none, or one lacks."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"no folder at {folder}")
    known = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() in _MASK_SUFFIXES}
    found = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not found:
        raise UserError(f"no images in {images}; known suffixes are {' '.join(sorted(IMAGE_SUFFIXES))}")
    missing = [path for path in found if path.stem + stem_end not in known]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"image {missing[0]} has no mask {masks / (missing[0].stem + stem_end)}.png{more}; add it or take the image out"
        )
    return [(path, known[path.stem + stem_end]) for path in found]


def _refuse_missing(pairs: list[Pair]) -> None:
    for image, mask in pairs:
        for path in (image, mask):
            if not path.is_file():
                raise UserError(f"{path} is missing, though the set's list names it")
