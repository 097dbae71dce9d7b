"""A teacher whose features are kept on disk, for views of an image that are the same in every epoch."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from edgemim.data.image_set import ImageSet
from edgemim.data.loader import Batch, eval_loader
from edgemim.data.transforms import PretrainTransform
from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError
from edgemim.teachers.cache_plan import GIB, cache_identity, check_cacheable, check_room
from edgemim.teachers.store import FeatureStore, total_bytes
from edgemim.teachers.teacher import Teacher

_COMPARED_ROWS, _TOLERANCE = 4, 0.02
_FILL_BATCH = 64
_CPU_PIECE, _GPU_PIECE = 8, 64


@dataclass
class _Shown:
    """The batch that is in use: what it shows, and its rows as far as they are there."""

    indices: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    found: np.ndarray


class CachedTeacher(nn.Module):
    """Gives the features of the batch in use from a store, and computes and keeps those that are not there.

    What a method sees is a teacher like any other. Which images are shown it learns from the stream of batches, that
    goes through `follow`: a batch is in use until the next one is asked for. Features pass through float16 whether
    they were there or not, so that a run does not depend on what others had filled. They are computed in float32.

    Attributes:
        grid, channels, summary: those of the teacher.
        store: where the rows are.
    """

    def __init__(self, teacher: Teacher, store: FeatureStore) -> None:
        super().__init__()
        self.teacher, self.store = teacher, store
        self.grid, self.channels, self.summary = teacher.grid, teacher.channels, teacher.summary
        self._shown: _Shown | None = None
        self._compared = False

    def follow(self, batches: Iterable[Batch]) -> Generator[Batch]:
        """The same batches; each one's rows are at hand until the next is asked for."""
        for batch in batches:
            indices, images = batch.indices.numpy(), batch.images.numpy()
            self._shown = _Shown(indices, images, *self.store.read(indices, images))
            yield batch
        self._shown = None

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """Features of the batch in use, float32.

        Args:
            images: that batch in [0, 1]; looked at only where a row is not there.

        Raises:
            UserError: if a feature is beyond float16.
        """
        return self._serve(images)  # pyright: ignore[reportCallIssue, reportReturnType, reportArgumentType]

    @torch.compiler.disable
    @torch.no_grad()
    def _serve(self, images: Tensor) -> Tensor:
        shown = self._shown
        if shown is None or len(shown.indices) != len(images):
            raise RuntimeError("a cached teacher gives the features of the batches that went through its follow() only")
        if not self._compared:
            self._compare(shown, images)
        missing = np.flatnonzero(~shown.found)
        if len(missing):
            shown.rows[missing] = self._live(images, missing)
            for place in missing.tolist():
                self.store.write(int(shown.indices[place]), shown.images[place], shown.rows[place])
            shown.found[:] = True
        return torch.from_numpy(shown.rows).to(images.device).float()

    def fill(
        self, folder: ImageSet, view: PretrainTransform, image_size: int, share: tuple[int, int], workers: int = 0
    ) -> None:
        """Compute all missing rows; `share` is (rank, processes), each of which takes its part.

        An image that cannot be read is left out. Raises UserError if a feature is beyond float16.
        """
        rank, processes = share
        missing = self.store.missing()[rank::processes]
        if not len(missing):
            return
        # The evaluation view of both wings is, pixel for pixel, that of crop 'none' (a test compares them).
        view_filter: Any = view.interpolation
        preprocessing = Preprocessing(image_size=image_size, crop_pct=1.0, interpolation=view_filter)
        loader = eval_loader(folder, preprocessing, batch_size=_FILL_BATCH, workers=workers, indices=missing)
        device = next(self.teacher.buffers()).device
        console = Console(stderr=True)
        columns = (TextColumn("filling the teacher cache"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=rank > 0 or not console.is_terminal) as bar:
            task = bar.add_task("", total=len(missing))
            for batch in self.follow(_readable(loader)):
                self(batch.images.to(device).float() / 255)
                bar.advance(task, len(batch))

    def facts(self) -> dict[str, Any]:
        """Plain values for run.json."""
        images, tokens, channels = self.store.shape
        return {
            "folder": str(self.store.folder),
            "gib": round(total_bytes(self.store.shape) / GIB, 4),
            "images": images,
            "tokens": tokens,
            "channels": channels,
            "filled": self.store.filled,
            **vars(self.store.counts),
        }

    def _live(self, images: Tensor, places: np.ndarray) -> np.ndarray:
        """float16 features of some images of a batch.

        Always in pieces of one size: kernels, and with them the last bits, are chosen by shape, and a row must not
        depend on which others were missing, or a run that goes on after a kill would not be the same.
        """
        count = len(places)
        piece = _CPU_PIECE if images.device.type == "cpu" else _GPU_PIECE
        padded = np.concatenate([places, np.repeat(places[-1:], -count % piece)])
        chosen = images[torch.from_numpy(padded).to(images.device)].float()
        with torch.autocast(images.device.type, enabled=False):
            features = torch.cat([self.teacher(part) for part in chosen.split(piece)])[:count]
        rows = features.half()
        if not torch.isfinite(rows).all():
            raise UserError(
                f"features of the teacher reach {float(features.abs().max()):g}, beyond float16 (65504), or are not "
                "finite: they cannot be cached; leave --teacher-cache out, or choose another 'teacher.stage'"
            )
        return rows.cpu().numpy()

    def _compare(self, shown: _Shown, images: Tensor) -> None:
        """Once a process: rows that are there must be this teacher's, whatever their name says."""
        places = np.flatnonzero(shown.found)[:_COMPARED_ROWS]
        if not len(places):
            return
        self._compared = True
        live = self._live(images, places).astype(np.float32)
        difference = np.abs(live - shown.rows[places].astype(np.float32)).mean()
        if difference > _TOLERANCE * np.abs(live).mean():
            print(
                f"warning: the teacher cache {self.store.folder} holds features of another function; it is made anew",
                file=sys.stderr,
                flush=True,
            )
            self.store.clear()
            shown.found[:] = False


def _readable(batches: Iterable[Batch]) -> Generator[Batch]:
    """Batches until there are none; that not one of the images can be read is for the training to count and report."""
    try:
        yield from batches
    except UserError:
        return


def open_cached(
    teacher: Teacher,
    root: Path,
    folder: ImageSet,
    view: PretrainTransform,
    image_size: int,
    *,
    limit_gib: float,
    announce: bool = False,
) -> CachedTeacher:
    """The teacher with its store below `root`, made where there is none.

    Args:
        folder: the images.
        view: how they are shown; the same in every epoch.
        image_size: side of the student's input in pixels.
        limit_gib: largest size of the store.
        announce: print the estimate first, verify what is there, and print how much that is.

    Raises:
        UserError: if an image does not always look the same, or the store would be too large or cannot be written.
    """
    check_cacheable(view)
    identity, shape = cache_identity(teacher, folder, view, image_size)
    if announce:
        print(f"teacher cache: {check_room(root, identity, shape, limit_gib)}", flush=True)
    store = FeatureStore.open(root, identity, shape)
    if announce:
        store.verify()
        print(f"teacher cache: {store.filled:,} of {shape[0]:,} images are there", flush=True)
    return CachedTeacher(teacher, store)
