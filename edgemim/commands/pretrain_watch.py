"""What pre-training looks at between epochs: reconstructions of fixed images, and k-NN where there are labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from edgemim.analysis.knn import extract_features, knn_accuracy
from edgemim.data.image_set import ImageSet
from edgemim.data.labelled import spread_over_classes, stratified_split
from edgemim.data.loader import eval_loader
from edgemim.data.sources import Source
from edgemim.edge.images import Preprocessing
from edgemim.methods.pretraining import PretrainObjective
from edgemim.run import RunRecord
from edgemim.training.distributed import World
from edgemim.training.recipe import Plan, due

if TYPE_CHECKING:
    from edgemim.commands.pretrain import PretrainConfig

_KNN_BANK, _KNN_QUERIES = 4000, 1000
_PICTURES = 8


class EncoderWatch:
    """Hook and evaluation of the loop, with the images and the settings that they need."""

    def __init__(
        self,
        config: PretrainConfig,
        model: PretrainObjective,
        folder: ImageSet,
        val: Source | None,
        plan: Plan,
        world: World,
        record: RunRecord,
    ) -> None:
        self.config, self.model, self.plan, self.world, self.record = config, model, plan, world, record
        self.preprocessing = Preprocessing(
            image_size=config.encoder.image_size, crop_pct=1.0, mean=config.mean, std=config.std
        )
        self._folder = folder
        self._bank, self._queries = _knn_parts(folder, val, config.seed) if world.is_main else (None, None)

    def picture(self, epoch: int, step: int) -> dict[str, float]:
        """Hook of the loop: a picture if it is due after this epoch, and always after the last."""
        if self._due(epoch, step, self.config.picture_every):
            self._paint(step)
        return {}

    def knn(self, epoch: int, step: int) -> dict[str, float]:
        """Evaluation of the loop: the k-NN figure, likewise."""
        if self._bank is None or not self._due(epoch, step, self.config.knn_every):
            return {}
        self.record.results["knn_top1"] = accuracy = self._knn()
        return {"knn_top1": accuracy}

    def _due(self, epoch: int, step: int, every: float) -> bool:
        return due(epoch, every) or (step == self.plan.total_steps and every > 0)

    def _paint(self, step: int) -> None:
        chosen = np.linspace(0, len(self._folder) - 1, min(_PICTURES, len(self._folder))).astype(int)
        loader = eval_loader(self._folder, self.preprocessing, batch_size=_PICTURES, indices=np.unique(chosen))
        batch = next(iter(loader)).to(self.world.device)
        painted = self.model.reconstruct(batch.images, batch.keys)
        if painted is None:
            return
        rows = [image.cpu() for image in (*painted, batch.images.float() / 255)]
        path = self.record.folder / "pictures" / f"reconstruction-{step:09d}.png"
        path.parent.mkdir(exist_ok=True)
        _save_grid(rows, path)

    def _knn(self) -> float:
        assert self._bank is not None
        assert self._queries is not None

        def encode(images: torch.Tensor) -> torch.Tensor:
            return self.model.pool(self.model.encoder(self.model.normalization.apply(images)))

        found = [
            extract_features(encode, eval_loader(part, self.preprocessing, batch_size=64), self.world.device)
            for part in (self._bank, self._queries)
        ]
        return knn_accuracy(*found[0], *found[1])


def _knn_parts(folder: ImageSet, val: Source | None, seed: int) -> tuple[ImageSet | None, ImageSet | None]:
    """A labelled bank and labelled queries: the val split's where there is one, else a tenth of the images."""
    if not folder.classes:
        return None, None
    if val is not None:
        bank, queries = folder, val.open().with_classes(folder.classes)
    else:
        kept, held = stratified_split(folder.labels, 0.1, seed)
        bank, queries = folder.select(kept), folder.select(held)
    if not len(queries):
        return None, None
    return (
        bank.select(spread_over_classes(bank.labels, _KNN_BANK)),
        queries.select(spread_over_classes(queries.labels, _KNN_QUERIES)),
    )


def _save_grid(rows: list[torch.Tensor], path: Path) -> None:
    """Rows of images in [0, 1], each [b, 3, h, w], as one PNG with two pixels between; small images are enlarged."""
    scale = max(1, 128 // rows[0].shape[-1])
    lines = []
    for images in rows:
        big = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        padded = torch.nn.functional.pad(big, (1, 1, 1, 1), value=1.0)
        lines.append(torch.cat(list(padded), dim=2))
    picture = (torch.cat(lines, dim=1).permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(picture.numpy()).save(path)
