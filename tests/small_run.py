"""A small fine-tuned run for tests: a ViT trained for seconds on crops of real photos, as `edgemim finetune` leaves it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
ARCHITECTURE = {"vit": {"name": "vit", "width": 48, "depth": 2, "heads": 3, "patch_size": 8, "image_size": 64}}


@functools.cache
def small_run(root: Path, *, train: int = 40, val: int = 60, steps: int = 150) -> Path:
    """Write `root/data` (train/ and val/, one folder a photo) and `root/run`; made once for a given folder."""
    _write_crops(root / "data", train, val)
    _train(root / "run", root / "data", steps)
    return root / "run"


def _write_crops(folder: Path, train: int, val: int) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos: pip install 'edgemim[quickstart]'")
    generator = np.random.default_rng(3)
    for name in PHOTOS:
        image = getattr(data, name)()
        for split, count in (("train", train), ("val", val)):
            target = folder / split / name
            target.mkdir(parents=True)
            for i in range(count):
                top, left = (int(generator.integers(0, side - 96)) for side in image.shape[:2])
                crop = Image.fromarray(image[top : top + 96, left : left + 96]).resize((64, 64))
                crop.save(target / f"{i:03d}.png")


def _train(run: Path, data: Path, steps: int) -> None:
    import torch

    from edgemim.edge.images import Preprocessing
    from edgemim.models.weights import save_model
    from edgemim.tasks.classification import ClassificationTask, build_model
    from edgemim.tasks.task import LabelledData

    torch.manual_seed(0)
    labelled = LabelledData.open(data)
    model = build_model(ARCHITECTURE, len(labelled.train.classes))
    preprocessing = Preprocessing(image_size=64, crop_pct=1.0, mean=(0.4, 0.4, 0.4), std=(0.25, 0.25, 0.25))
    task = ClassificationTask(model, labelled.train.classes, preprocessing, labelled, architecture=ARCHITECTURE)
    images = torch.from_numpy(np.concatenate(list(task.calibration_batches(10_000))))
    order = np.sort(np.random.default_rng(0).permutation(len(labelled.train)))
    labels = torch.from_numpy(labelled.train.labels[order].astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(steps):
        chosen = torch.randint(len(images), (32,))
        loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(run / "model", model.state_dict(), task.facts())
    record = {"verb": "finetune", "status": "done", "config": {"data": str(data)}, "results": {}}
    (run / "run.json").write_text(json.dumps(record))


def timings(fp32_ms: float, int8_ms: float, *, foreign: float = 0.0) -> dict:
    """Two timings of five steady blocks, as `edge.benchmark.measure` gives them, with others taking that share."""
    from edgemim.edge.benchmark import Block, Timing

    def steady(latency_ms: float) -> Timing:
        block = Block(np.full(10, latency_ms), cpu_seconds=latency_ms / 100, wall_seconds=latency_ms / 100)
        return Timing((block,) * 5, (foreign,) * 5)

    return {"fp32": steady(fp32_ms), "int8": steady(int8_ms)}


def stopwatch(*answers: dict):
    """Stands in for `measure`: runs each case once and gives the answers in turn, the last one for ever."""
    left = list(answers)

    def measure(cases, *, seconds: float, blocks: int) -> dict:
        assert set(cases) == {"fp32", "int8"}
        assert seconds > 0
        assert blocks >= 5
        for call in cases.values():
            call()
        return left.pop(0) if len(left) > 1 else left[0]

    return measure
