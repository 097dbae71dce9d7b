"""How a tracker's network is laid over a video: crops, maps, window and limits; a part of the artifact's manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from edgemim.config import Config

TEMPLATE_SUFFIX = "-template"
"""What the key of a cached tracker's template graph adds to the key of its search graph."""


class TrackingInference(Config):
    """OSTrack's inference (arXiv 2203.11991 and its published code): all that the loop around a network must know."""

    model_config = ConfigDict(allow_inf_nan=False)

    form: Literal["joint", "cached"] = "joint"
    """joint: one graph takes template and search region. cached: one graph computes the template's keys and values
    once, the other searches with them."""
    template_size: Annotated[int, Field(ge=16, le=2048)] = 128
    """Side of the template crop that the network sees, pixels."""
    search_size: Annotated[int, Field(ge=16, le=2048)] = 256
    """Side of the search crop that the network sees, pixels."""
    template_factor: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Side of the template crop over the square root of the box's area."""
    search_factor: Annotated[float, Field(gt=0, le=100)] = 4.0
    """Side of the search crop over the square root of the box's area."""
    border: Literal["published", "whole"] = "published"
    """published: a crop that reaches an image's right or lower border loses the last column or row, as in OSTrack's code
    for training and inference. whole: it does not."""
    window: Literal["hann", "none"] = "hann"
    """What the score map is multiplied by before its maximum is taken."""
    size_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the way to the found size that the box goes in a frame, times the score (as SiamRPN smooths it, CVPR 2018,
    section 4.3). 1: all of it whatever the score, as published; 0: the first size stays, for a network that has learnt
    where things are but not how far they extend."""
    margin_px: Annotated[float, Field(gt=0)] = 10.0
    """A box keeps at least so much inside the image on each axis, so it is never narrower or lower; video's pixels."""
    lost_below: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Below this score the target is reported as lost."""
    template_name: str = "template"
    """Name of the network's input for the template crop."""
    search_name: str = "search"
    """Name of the network's input for the search crop."""
    maps: tuple[str, str, str] = ("score", "size", "offset")
    """Names of the network's outputs for score [1, 1, g, g], size [1, 2, g, g] and offset [1, 2, g, g]."""

    def fits(
        self,
        image_size: int,
        inputs: dict[str, tuple[int | None, ...]],
        output_names: tuple[str, ...],
        files: tuple[str, ...],
    ) -> None:
        """Raises ValueError if a manifest's sizes, names or files disagree with this."""
        if image_size != self.search_size:
            raise ValueError(f"preprocessing.image_size {image_size} is not tracking.search_size {self.search_size}")
        for name, side in ((self.template_name, self.template_size), (self.search_name, self.search_size)):
            if inputs.get(name) != (1, 3, side, side):
                found = list(inputs[name]) if name in inputs else "missing"
                raise ValueError(f"inputs.{name} is {found}, tracking wants [1, 3, {side}, {side}]")
        if set(output_names) != set(self.maps):
            raise ValueError(f"output_names {list(output_names)} are not tracking.maps {list(self.maps)}")
        self._check_files(files)

    def _check_files(self, files: tuple[str, ...]) -> None:
        for key in files:
            template = key.endswith(TEMPLATE_SUFFIX)
            if self.form == "joint" and template:
                raise ValueError(f"files.{key} is a template graph, but tracking.form is joint")
            if self.form == "cached" and not template and key + TEMPLATE_SUFFIX not in files:
                raise ValueError(
                    f"files.{key} has no template graph {key + TEMPLATE_SUFFIX}, but tracking.form is cached"
                )
