"""What tracking trains on, as configuration: sources by layout, their shares, and how pairs of them are drawn and cut."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from edgemim.config import Config
from edgemim.data.tracking.sources import MAX_GAP
from edgemim.data.tracking.transforms import PairTransform

SourceLayout = Literal["lasot", "got10k", "trackingnet", "coco", "otb", "uav123", "vot", "folder", "images"]


class PairSourceConfig(Config):
    """One set of sequences or of still pictures."""

    layout: SourceLayout | None = None
    """lasot, got10k, trackingnet, otb, uav123, vot, folder (SEQUENCE/ with frames and a file of boxes), coco, or images
    (still pictures); default by what lies there."""
    root: Path = Path()
    """Its folder; relative to --data where that is given."""
    ratio: float = pydantic.Field(default=1.0, gt=0)
    """Its share of the pairs, relative to the other sources'."""
    split: str = ""
    """Part of the set in the layout's own words: train (lasot, got10k), 0,1,2 (trackingnet's chunks), train2017 (coco)."""
    only: Path | None = None
    """File with the names of the sequences that are used, one a line, or their numbers from 0 in the order of the set."""
    exclude: Path | None = None
    """File with sequences that are left out, alike."""
    min_frames: int = pydantic.Field(default=20, ge=2)
    """Shorter sequences are left out, as published."""
    objects: Literal["boxes", "masks", "random"] | None = None
    """Still pictures: boxes of a table, parts of masks, or random regions of pictures without either."""
    boxes: Path | None = None
    """Still pictures: the table of boxes, instead of boxes.csv or boxes.json in the root."""
    classes: tuple[str, ...] = ()
    """Still pictures with masks: classes that are objects; default all but background and void."""
    min_side_px: float = pydantic.Field(default=10.0, ge=1)
    """Still pictures with masks: narrower or lower parts are left out."""


class PairsConfig(Config):
    """Pairs of a template and a search region. The defaults are OSTrack's (arXiv 2203.11991)."""

    sources: tuple[PairSourceConfig, ...] = ()
    """Sets and their shares; default the one set in --data."""
    layout: SourceLayout | None = None
    """Layout of --data where no sources are named; default by what lies there."""
    objects: Literal["boxes", "masks", "random"] | None = None
    """Objects of the still pictures in --data where no sources are named."""
    pairs_per_epoch: int = pydantic.Field(default=60_000, ge=1)
    """Pairs of an epoch; they are drawn, so that an epoch is no pass over the data."""
    max_gap: int = pydantic.Field(default=MAX_GAP, ge=2)
    """The search frame is at most this many frames, less one, after the template's."""
    held_pairs: int = pydantic.Field(default=1000, ge=1)
    """Held-out pairs that are measured on."""
    transform: PairTransform = PairTransform()
    """Augmentation."""
