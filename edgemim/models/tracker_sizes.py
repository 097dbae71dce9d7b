"""Named sizes of one-stream trackers: an encoder, the two crops that it sees, and the head that finds the box."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from edgemim.config import Config, Presets, load_yaml
from edgemim.models.sizes import SIZES, VitConfig

Attention = Literal["joint", "cached"]
Rows = Literal["point", "rectangle", "box", "all"]


class TrackerForm(Config):
    """What a tracker adds to an encoder. The defaults are those of OSTrack-256 (arXiv 2203.11991)."""

    template_size: int = pydantic.Field(default=128, ge=1)
    """Side of the template's crop, pixels; a multiple of the encoder's patch."""
    search_size: int = pydantic.Field(default=256, ge=1)
    """Side of the search region's crop, pixels; a multiple of the encoder's patch."""
    template_factor: float = pydantic.Field(default=2.0, ge=1)
    """Side of the template's crop over the geometric mean of the box's sides."""
    search_factor: float = pydantic.Field(default=4.0, ge=1)
    """Side of the search region's crop over the geometric mean of the box's sides."""
    size_rate: float = pydantic.Field(default=1.0, ge=0, le=1)
    """Share of the way to the found size that the box goes in a frame, times the score; 1: all of it, as published. Near 0
    for a tracker that was trained on any region of photos, which says nothing of how far an object extends."""
    attention: Attention = "joint"
    """joint: all tokens see each other, as published; cached: the template's see only each other, so that their keys and
    values are computed once a sequence."""
    head_width: int = pydantic.Field(default=256, ge=8)
    """Channels of the centre head's first convolution; halved by each of the next three."""
    matching_blocks: tuple[int, ...] = ()
    """Blocks behind which search tokens are compared with the template's, one by one, for the head to see; counted from 1.
    None, as published: then attention alone has to learn it."""
    elimination: bool = True
    """Drop search tokens that the template does not look at on the way (joint attention only)."""
    elimination_blocks: tuple[int, ...] = ()
    """Blocks that drop tokens, counted from 1; none: those behind 1/4, 1/2 and 3/4 of the depth (4, 7, 10 of 12)."""
    keep: tuple[float, ...] = (0.7,)
    """Share of the search tokens that such a block keeps: one for all blocks, or one each."""
    ranked_by: Rows = "point"
    """Whose attention ranks the search tokens: the template's central token, its central two by two, those on its box,
    or all."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TrackerForm:
        if self.head_width % 8:
            raise ValueError(f"head_width {self.head_width} is not a multiple of 8: it is halved three times")
        if not all(0 < keep <= 1 for keep in self.keep):
            raise ValueError(f"keep {list(self.keep)}: each is a share above 0 and up to 1")
        if self.elimination_blocks and not self.eliminates:
            raise ValueError(
                "elimination_blocks have no effect with cached attention or without elimination; leave them out"
            )
        return self

    @property
    def eliminates(self) -> bool:
        """Whether search tokens are dropped. With cached attention they never are: rank and gather would cost more than
        what is left to save."""
        return self.elimination and self.attention == "joint"

    def on(self, encoder: VitConfig) -> TrackerSize:
        """This tracker on an encoder. Raises pydantic.ValidationError if it does not fit."""
        return TrackerSize.model_validate({**self.model_dump(), "encoder": encoder})


class TrackerSize(TrackerForm):
    """A tracker with its encoder; builds itself as `edgemim.models.one_stream.OneStreamTracker`."""

    encoder: VitConfig = VitConfig()
    """A plain vision transformer; its `image_size` is that of pre-training, whose positions the crops' begin from."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> TrackerSize:
        if type(self.encoder) is not VitConfig:
            raise ValueError(f"a tracker is built on a plain vision transformer, not on a {self.encoder.name}")
        for name in ("template_size", "search_size"):
            if getattr(self, name) % self.encoder.patch_size:
                raise ValueError(
                    f"{name} {getattr(self, name)} is not a multiple of the encoder's patch of {self.encoder.patch_size}"
                )
        for name in ("elimination_blocks", "matching_blocks"):
            wrong = [block for block in getattr(self, name) if not 1 <= block <= self.encoder.depth]
            if wrong:
                raise ValueError(f"{name} {wrong} are not among the encoder's 1 to {self.encoder.depth}")
        if len(self.keep) not in (1, len(self.drops)) and self.eliminates:
            raise ValueError(f"keep names {len(self.keep)} shares, elimination has {len(self.drops)} blocks")
        return self

    @property
    def template_grid(self) -> int:
        """Tokens along a side of the template."""
        return self.template_size // self.encoder.patch_size

    @property
    def search_grid(self) -> int:
        """Tokens along a side of the search region."""
        return self.search_size // self.encoder.patch_size

    @property
    def head_input(self) -> int:
        """Channels that the head sees: features, and for each matching block the similarity to every template token."""
        return self.encoder.width + len(set(self.matching_blocks)) * self.template_grid**2

    @property
    def drops(self) -> tuple[int, ...]:
        """Blocks that drop search tokens, counted from 1, ascending."""
        if not self.eliminates:
            return ()
        depth = self.encoder.depth
        spread = (depth // 4 + 1, depth // 2 + 1, 3 * depth // 4 + 1)
        return tuple(sorted(set(self.elimination_blocks or spread)))

    @property
    def keeps(self) -> dict[int, float]:
        """The share of the search tokens that each of these blocks keeps."""
        shares = self.keep * len(self.drops) if len(self.keep) == 1 else self.keep
        return dict(zip(self.drops, shares, strict=True))


_THIN = TrackerForm(head_width=64)
_SMALL = TrackerForm(template_size=96, search_size=192, head_width=64)
_MICRO = TrackerForm(template_size=32, search_size=64, head_width=16)


def _cached(form: TrackerForm) -> TrackerForm:
    return form.model_copy(update={"attention": "cached"})


TRACKER_FORMS: dict[str, TrackerForm] = {
    # OSTrack-256 and, on ViT-Tiny with 12 heads, the lightweight study's tracker (arXiv 2404.12210): 8.04M parameters.
    "published": TrackerForm(),
    # For slower devices: the head at a quarter of its width, and smaller crops.
    "thin": _THIN,
    "small": _SMALL,
    "cached": _cached(TrackerForm()),
    "cached_thin": _cached(_THIN),
    "cached_small": _cached(_SMALL),
    # Minutes on a CPU: tests and the first look, on vit_micro or vit_nano.
    "micro": _MICRO,
    "cached_micro": _cached(_MICRO),
}


class _FormPresets(Presets):
    """Presets of one kind: a file needs no `name` to say which."""

    def _read(self, path: Path) -> TrackerForm:
        return load_yaml(path, TrackerForm)


TrackerFormConfig = Annotated[TrackerForm, _FormPresets(TRACKER_FORMS)]


def _size(form: str, encoder: str) -> TrackerSize:
    size = SIZES[encoder]
    assert isinstance(size, VitConfig)
    return TRACKER_FORMS[form].on(size)


TRACKER_SIZES: dict[str, TrackerSize] = {
    **{f"vit_tiny_{form}": _size(form, "vit_tiny") for form in TRACKER_FORMS if "micro" not in form},
    "vit_base_published": _size("published", "vit_base"),
    "vit_micro": _size("micro", "vit_micro"),
    "vit_nano": _size("micro", "vit_nano"),
    "vit_nano_cached": _size("cached_micro", "vit_nano"),
}
