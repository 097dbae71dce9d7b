"""The tracker: a network around which crops are taken and maps are read, frame after frame (OSTrack's published loop)."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgemim.edge.artifact import Artifact
from edgemim.edge.images import Preprocessing
from edgemim.edge.runtime import Session, open_session
from edgemim.edge.tracking.boxes import Box, clip_box
from edgemim.edge.tracking.crop import Crop, Normaliser, crop_square
from edgemim.edge.tracking.decode import decode_maps, hann_window, to_image
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX, TrackingInference
from edgemim.errors import ModelRefused, UserError


class Tracked(NamedTuple):
    """What one frame gave."""

    box: Box
    score: float
    """How sure the network is, 0..1: the maximum of its score map before the window."""
    lost: bool
    """Whether the score is below the artifact's (or the caller's) threshold. The box is the network's best guess."""
    crop_ms: float
    """Time to cut, resize and normalise the search region."""
    infer_ms: float
    """Time of the network."""
    post_ms: float
    """Time to read the maps and to map the box back."""


class Tracker:
    """Follows one object from a box in the first image: `init` once, then `update` for each further image.

    Images are uint8 [h, w, 3], RGB, all of one size. Boxes stay floats. There is no update of the template and
    no search beyond the region around the last box: a lost target shows as a low score.
    """

    def __init__(
        self,
        session: Session,
        inference: TrackingInference,
        preprocessing: Preprocessing,
        template_session: Session | None = None,
        *,
        lost_below: float | None = None,
    ) -> None:
        self.session = session
        self.inference = inference
        self.lost_below = inference.lost_below if lost_below is None else lost_below
        self._template_session = template_session
        self._normalise = Normaliser(preprocessing)
        self._fixed: dict[str, np.ndarray] = {}
        self._box: Box | None = None
        self._size: tuple[int, ...] = ()

    @classmethod
    def open(
        cls,
        artifact: str | Path | Artifact,
        key: str = "onnx-fp32",
        *,
        runtime: str | None = None,
        threads: int = 0,
        lost_below: float | None = None,
    ) -> Tracker:
        """Open a tracking artifact; `key` names the graph that runs on every frame, `threads=0` takes all usable CPUs.

        Raises UserError, MissingLibrary or ModelRefused, as `open_session` does.
        """
        artifact = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        manifest = artifact.manifest
        if manifest.tracking is None:
            raise UserError(
                f"{artifact.folder} is for {manifest.task}, not a tracker; give an artifact of a tracking run"
            )
        if key.endswith(TEMPLATE_SUFFIX):
            raise UserError(
                f"'{key}' is the template's graph; name '{key.removesuffix(TEMPLATE_SUFFIX)}', it finds both"
            )
        session = open_session(artifact, key, runtime=runtime, threads=threads)
        template = None
        if manifest.tracking.form == "cached":
            template = open_session(artifact, key + TEMPLATE_SUFFIX, runtime=runtime, threads=threads)
        return cls(session, manifest.tracking, manifest.preprocessing, template, lost_below=lost_below)

    def init(self, image: np.ndarray, box: Box | tuple[float, float, float, float] | np.ndarray) -> None:
        """Take the template from the first image. Raises UserError on a box that shows nothing of it."""
        _check_image(image)
        box = checked_box(box, image.shape[1], image.shape[0])
        facts = self.inference
        crop = self._crop(image, box, facts.template_factor, facts.template_size)
        fixed = {facts.template_name: self._normalise(crop.pixels)}
        # The cached form computes here, once, what the joint form does again for every frame.
        self._fixed = fixed if self._template_session is None else self._template_session.run(fixed)
        self._box, self._size = box, image.shape

    def update(self, image: np.ndarray) -> Tracked:
        """Find the object in the next image. Raises UserError before `init`, or on an image of another size."""
        if self._box is None:
            raise UserError("the tracker has no target yet; call init(image, box) first")
        if image.shape != self._size or image.dtype != np.uint8:
            raise UserError(f"the image is {_named(image)}, the first one was uint8 {_shape(self._size)}; resize it")
        facts = self.inference
        began = time.perf_counter()
        crop = self._crop(image, self._box, facts.search_factor, facts.search_size)
        search = self._normalise(crop.pixels)
        cropped = time.perf_counter()
        maps = self.session.run({**self._fixed, facts.search_name: search})
        inferred = time.perf_counter()
        score = self._read(maps, facts.search_size / crop.resize_factor)
        done = time.perf_counter()
        return Tracked(
            self._box,
            score,
            score < self.lost_below,
            1e3 * (cropped - began),
            1e3 * (inferred - cropped),
            1e3 * (done - inferred),
        )

    def warm_up(self) -> None:
        """Run every graph once on black crops, for a runtime's first run is slow. Keeps no target."""
        facts = self.inference
        black = np.zeros((facts.template_size, facts.template_size, 3), np.uint8)
        self.init(black, Box(0, 0, facts.template_size, facts.template_size))
        self.update(black)
        self._box, self._fixed = None, {}

    def _crop(self, image: np.ndarray, box: Box, factor: float, size: int) -> Crop:
        return crop_square(image, box, factor, size, whole=self.inference.border == "whole")

    def _maps(self, maps: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Score, size and offset. Raises ModelRefused if a map is missing or has another shape than it should."""
        found = [maps.get(name, np.empty(0)) for name in self.inference.maps]
        grid = found[0].shape[-1]
        for name, given, depth in zip(self.inference.maps, found, (1, 2, 2), strict=True):
            if given.shape != (1, depth, grid, grid) or not grid:
                shape = _shape(given.shape) if name in maps else "missing"
                raise ModelRefused(f"the model's map '{name}' is {shape}, not 1×{depth}×g×g; export it again")
        return found

    def _read(self, maps: dict[str, np.ndarray], side_px: float) -> float:
        """Move the box to where the maps point; returns the score."""
        assert self._box is not None
        score, size, offset = self._maps(maps)
        window = hann_window(score.shape[-1]) if self.inference.window == "hann" else None
        decoded = decode_maps(score, size, offset, window)
        box = to_image(decoded, self._box, side_px, self.inference.size_rate)
        if not all(map(math.isfinite, box)):  # a network that overflowed: the box waits where it was
            return 0.0
        height, width = self._size[:2]
        self._box = clip_box(box, width, height, margin=min(self.inference.margin_px, width, height))
        return decoded.score


def example_inputs(artifact: Artifact, key: str, *, runtime: str | None, threads: int) -> dict[str, np.ndarray]:
    """Noise of the right names and shapes for one graph of a tracking artifact, to time it; a cache comes from its graph.

    Raises as `open_session` does, UserError on an artifact that is no tracker.
    """
    facts = artifact.manifest.tracking
    if facts is None:
        raise UserError(f"{artifact.folder} is for {artifact.manifest.task}, not a tracker")
    generator = np.random.default_rng(0)
    template, search = (
        {name: generator.standard_normal((1, 3, side, side)).astype(np.float32)}
        for name, side in ((facts.template_name, facts.template_size), (facts.search_name, facts.search_size))
    )
    if key.endswith(TEMPLATE_SUFFIX):
        return template
    if facts.form == "cached":
        template = open_session(artifact, key + TEMPLATE_SUFFIX, runtime=runtime, threads=threads).run(template)
    return {**template, **search}


def checked_box(box: Box | tuple[float, ...] | np.ndarray, width: int, height: int) -> Box:
    """A box to start from, on an image of `width` × `height` pixels.

    Raises UserError if it is not four finite numbers, has no area or lies outside the image; a part may stick out.
    """
    values = [float(value) for value in box]
    named = ",".join(f"{value:g}" for value in values)
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise UserError(f"box {named} is not four finite numbers: left, top, width, height in pixels")
    checked = Box(*values)
    if checked.width <= 0 or checked.height <= 0:
        raise UserError(f"box {named} has no area; give left, top, width, height in pixels, the last two above 0")
    right, bottom = checked.left + checked.width, checked.top + checked.height
    if checked.left >= width or checked.top >= height or right <= 0 or bottom <= 0:
        raise UserError(f"box {named} lies outside the image of {width}×{height} pixels; the corner 0,0 is top left")
    if checked.width * checked.height > 16 * width * height:
        raise UserError(f"box {named} is far larger than the image of {width}×{height} pixels")
    return checked


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UserError(f"the image is {_named(image)}; a tracker takes uint8 height×width×3, RGB")


def _named(image: np.ndarray) -> str:
    return f"{image.dtype} {_shape(image.shape)}"


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))
