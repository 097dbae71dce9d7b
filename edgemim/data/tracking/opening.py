"""From configured sources to two mixtures of pairs, one to train on and one held out; everything is checked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgemim.data.folders import ImageFolder, find_splits, scan_folder
from edgemim.data.tracking.config import PairsConfig, PairSourceConfig, SourceLayout
from edgemim.data.tracking.pairs import Shot
from edgemim.data.tracking.regions import RandomRegions
from edgemim.data.tracking.sources import Mixture, PairSource, SequenceSource, StillSource, Track
from edgemim.data.tracking.stills import BOX_FILES, coco_shots, listed_shots, mask_shots
from edgemim.data.tracking.trackingnet import TrackingNet
from edgemim.edge.tracking.annotations import Layout
from edgemim.edge.tracking.layouts import open_layout
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.errors import UserError

_LEAST_VISIBLE = 5

T = TypeVar("T")
Parts = tuple[PairSource, PairSource | None]
"""What is trained on, and what is held out (None where there is too little)."""


@dataclass(frozen=True)
class TrackingData:
    """Training and held-out pairs.

    Attributes:
        train: pairs that are trained on.
        val: pairs that are only measured on.
        held_out: how `val` came about, for the record.
        summary: one line a source: what it holds, its share.
        warnings: what was left out.
    """

    train: Mixture
    val: Mixture
    held_out: str
    summary: tuple[str, ...]
    warnings: tuple[str, ...]


def open_tracking_data(config: PairsConfig, data: Path | None, *, val_share: float, seed: int) -> TrackingData:
    """Read all annotations and check them; no picture is decoded.

    Args:
        config: the sources.
        data: the folder that their roots are relative to, or the one set itself.
        val_share: share of a source's sequences (or pictures, where the set has no split of its own) that is held out.
        seed: of that choice.

    Raises:
        UserError: naming the file or key, if a source is not there, an annotation is at fault, or nothing can be held out.
    """
    sources = config.sources or (_lone(config, data),)
    warnings: list[str] = []
    parts = [_open(_placed(source, data), config.max_gap, val_share, seed, warnings) for source in sources]
    ratios = [source.ratio for source in sources]
    held = [(part[1], ratio) for part, ratio in zip(parts, ratios, strict=True) if part[1] is not None]
    if not held:
        raise UserError(
            f"{val_share:.0%} of so few sequences or pictures cannot be held out; give a larger --val-share"
        )
    total = sum(ratios)
    summary = tuple(
        f"{part[0].name}: {len(part[0]):,} targets, {ratio / total:.0%} of the pairs"
        for part, ratio in zip(parts, ratios, strict=True)
    )
    return TrackingData(
        Mixture([part[0] for part in parts], ratios),
        Mixture([source for source, _ in held], [ratio for _, ratio in held]),
        f"a set's own split, else {val_share:.0%} of its sequences or pictures, seed {seed}",
        summary,
        tuple(warnings),
    )


def _lone(config: PairsConfig, data: Path | None) -> PairSourceConfig:
    if data is None:
        raise UserError(
            "give --data DIR, a folder of sequences or of pictures with boxes or masks, or task.pairs.sources"
        )
    return PairSourceConfig(layout=config.layout, objects=config.objects, root=data)


def _placed(source: PairSourceConfig, data: Path | None) -> PairSourceConfig:
    base = data or Path()
    paths = {name: getattr(source, name) for name in ("root", "only", "exclude", "boxes")}
    return source.model_copy(
        update={name: (base / path).absolute() for name, path in paths.items() if path is not None}
    )


def _open(source: PairSourceConfig, max_gap: int, val_share: float, seed: int, warnings: list[str]) -> Parts:
    if not source.root.is_dir():
        raise UserError(f"no folder at {source.root}; give the folder of the set, or leave this source out")
    layout = source.layout or recognise(source.root)
    if layout == "coco":
        return _stills(source, coco_shots(source.root, source.split), val_share, seed)
    if layout == "images":
        return _images(source, val_share, seed)
    return _sequences(source, layout, max_gap, val_share, seed, warnings)


def recognise(root: Path) -> SourceLayout:
    """The layout of a set by what lies in its folder. Raises UserError if it is like none."""
    signs: tuple[tuple[SourceLayout, tuple[str, ...]], ...] = (
        ("coco", ("annotations/instances_*.json",)),
        ("trackingnet", ("TRAIN_*/anno",)),
        ("lasot", ("*/*/full_occlusion.txt", "*/full_occlusion.txt")),
        ("got10k", ("*/meta_info.ini", "train/*/meta_info.ini", "train/list.txt")),
        ("uav123", ("anno/UAV123",)),
        ("otb", ("*/groundtruth_rect*.txt",)),
        ("folder", ("*/groundtruth.txt", "*/boxes.txt", "groundtruth*.txt", "boxes.txt")),
        ("images", (*BOX_FILES, "images", "train/images", "JPEGImages", "trainannot", "train_labels")),
    )
    for layout, patterns in signs:
        if any(next(root.glob(pattern), None) is not None for pattern in patterns):
            return layout
    raise UserError(
        f"{root} is laid out like no tracking set; give task.pairs.layout, or for pictures without boxes "
        "--task.pairs.layout images --task.pairs.objects random"
    )


def _images(source: PairSourceConfig, val_share: float, seed: int) -> Parts:
    objects = source.objects or _kind_of(source.root, source.boxes)
    if objects == "boxes":
        return _stills(source, listed_shots(source.root, source.boxes), val_share, seed)
    if objects == "masks":
        train, held = mask_shots(source.root, source.classes, source.min_side_px)
        if not train:
            raise UserError(f"the masks in {source.root} show no object of at least {source.min_side_px:g} px a side")
        own = StillSource(f"{source.root} (held out)", held) if held else None
        return (StillSource(str(source.root), train), own) if own else _stills(source, train, val_share, seed)
    splits = find_splits(source.root)
    folder = scan_folder(splits.get("train", source.root))
    other = splits.get("val") or splits.get("test")
    if other is not None:
        return _regions(source, folder), _regions(source, scan_folder(other))
    kept, out = _divided(np.arange(len(folder)), val_share, seed)
    return _regions(source, folder.select(kept)), _regions(source, folder.select(out)) if len(out) else None


def _kind_of(root: Path, boxes: Path | None) -> str:
    if boxes is not None or any((root / name).is_file() for name in BOX_FILES):
        return "boxes"
    if any(
        (root / name).is_dir() for name in ("masks", "train/masks", "SegmentationClass", "trainannot", "train_labels")
    ):
        return "masks"
    raise UserError(
        f"the pictures in {root} have neither {BOX_FILES[0]} nor masks; give objects: random to learn from any region"
    )


def _regions(source: PairSourceConfig, folder: ImageFolder) -> RandomRegions:
    return RandomRegions(f"{source.root} (random regions)", folder)


def _stills(source: PairSourceConfig, shots: Sequence[Shot], val_share: float, seed: int) -> Parts:
    """Whole pictures are held out, with all their objects."""
    if not shots:
        raise UserError(f"{source.root} holds no object")
    paths = sorted({shot.path for shot in shots})
    out = {paths[i] for i in _divided(np.arange(len(paths)), val_share, seed)[1]}
    kept = [shot for shot in shots if shot.path not in out]
    held = [shot for shot in shots if shot.path in out]
    name = str(source.root)
    return StillSource(name, kept), StillSource(f"{name} (held out)", held) if held else None


def _sequences(
    source: PairSourceConfig, layout: str, max_gap: int, val_share: float, seed: int, warnings: list[str]
) -> Parts:
    tracks = read_tracks(source, layout, warnings)
    kept, out = (_take(tracks, part) for part in _divided(np.arange(len(tracks)), val_share, seed))
    name = str(source.root)
    held = SequenceSource(f"{name} (held out)", out, max_gap) if out else None
    return SequenceSource(name, kept, max_gap), held


def read_tracks(source: PairSourceConfig, layout: str, warnings: list[str]) -> list[Track]:
    """All sequences of a source that are long enough and show their target; says into `warnings` how many are not.

    Raises UserError if there is none, SequenceError on the first annotation at fault.
    """
    reader = _reader(layout, source, warnings)
    names = _listed(reader.names(), source)
    tracks, short = [], []
    for name in names:
        try:
            track = Track.of(reader.read(name))
        except SequenceError as error:
            raise SequenceError(f"{error}; or name it in a file for this source's 'exclude'") from error
        usable = len(track) >= source.min_frames and len(track.visible) >= min(_LEAST_VISIBLE, source.min_frames)
        (tracks if usable else short).append(track if usable else name)
    if short:
        warnings.append(
            f"{len(short)} of {len(names)} sequences in {source.root} are left out, such as {short[0]}: shorter than "
            f"{source.min_frames} frames, or fewer than {_LEAST_VISIBLE} with a target"
        )
    if not tracks:
        raise UserError(f"no sequence in {source.root} has {source.min_frames} frames with a target (min_frames)")
    return tracks


def _reader(layout: str, source: PairSourceConfig, warnings: list[str]) -> Layout:
    """Of LaSOT and GOT-10k the training part, where it can be told from the rest."""
    split = source.split
    if layout == "trackingnet":
        return TrackingNet(source.root, split=split)
    if layout == "got10k" and not split and (source.root / "train").is_dir():
        split = "train"
    if layout == "lasot" and not (split or source.only or source.exclude):
        split = "train" if (source.root / "training_set.txt").is_file() else ""
        if not split:
            warnings.append(
                f"{source.root} has no training_set.txt: if LaSOT's test sequences lie there they are trained on; put the "
                "list there, or name them in a file for 'exclude'"
            )
    return open_layout(layout, source.root, split=split)


def _listed(names: list[str], source: PairSourceConfig) -> list[str]:
    if not names:
        raise UserError(f"no sequence found in {source.root}; is its layout the one that was named?")
    if source.only is not None:
        wanted = _read_list(source.only, names)
        missing = sorted(wanted - set(names))
        if missing:
            raise UserError(f"{source.only} names {missing[0]!r}, which is not in {source.root}")
        names = [name for name in names if name in wanted]
    if source.exclude is not None:
        unwanted = _read_list(source.exclude, names)
        names = [name for name in names if name not in unwanted]
    if not names:
        raise UserError(f"'only' and 'exclude' leave no sequence of {source.root}")
    return names


def _read_list(path: Path, names: list[str]) -> set[str]:
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list of sequences {path}: {error}") from error
    if all(word.isdecimal() for word in words) and not set(words) & set(names):
        beyond = [word for word in words if int(word) >= len(names)]
        if beyond:
            raise UserError(f"{path} holds the number {beyond[0]}; the set has {len(names)} sequences, counted from 0")
        return {names[int(word)] for word in words}
    return set(words)


def _divided(numbers: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out), each sorted; one at least is kept and, of two or more, one held out."""
    count = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    order = np.random.default_rng([seed, 0x7AC]).permutation(numbers)
    return np.sort(order[count:]), np.sort(order[:count])


def _take(items: Sequence[T], places: np.ndarray) -> list[T]:
    return [items[int(place)] for place in places]
