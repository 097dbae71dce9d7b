"""`edgemim probe`: what a frozen encoder's features are worth, by k-nearest neighbours or a linear classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
import tyro

from edgemim.analysis.knn import extract_features, knn_accuracy
from edgemim.analysis.linear_probe import OptimizerName, ProbeSettings, linear_probe, sorted_rates
from edgemim.config import Config
from edgemim.data.labelled import LabelledData
from edgemim.data.loader import eval_loader
from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import HieraConfig
from edgemim.models.weights import load_encoder, read_facts
from edgemim.run import RunRecord, find_run
from edgemim.training.distributed import pick_device


class ProbeConfig(Config):
    """Accuracy of a pre-trained encoder's pooled patch tokens or class token, at any block, by k-NN or a linear classifier.

    The linear one tries learning rates on a part of the training images and trains again with the best; over seeds.
    Example: edgemim probe runs/pretrain --data photos/ --probe linear --blocks 2 4
    """

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a pre-training run; default the newest."""
    data: Path | None = None
    """Folder with one sub-folder a class, or with train/ and val/ (or test/) of such; CSV file of path,label; tar shards;
    Hugging Face dataset on disk."""
    val: Path | None = None
    """Images that are classified; else val/ beside train/, else a share of the data."""
    classes: Path | None = None
    """File of class names, one a line: which classes there are, and in which order; default those of the data."""
    val_share: float = pydantic.Field(default=0.2, gt=0, lt=1)
    """Share of each class that is classified where there is no val folder."""
    probe: Literal["knn", "linear", "both"] = "knn"
    """k-nearest neighbours, a linear classifier, or both on the same features."""
    pool: Literal["mean", "cls"] = "mean"
    """The feature of an image: the mean of its patch tokens, or the class token, which MoCo-v3 trains; behind the final norm."""
    blocks: Annotated[tuple[int, ...], tyro.conf.arg(aliases=("--block",))] = ()
    """Blocks to probe, 1 is the first; default the last."""
    optimizer: OptimizerName = "adamw"
    """Of the linear classifier: AdamW, or LARS with momentum 0.9."""
    rates: tuple[Annotated[float, pydantic.Field(gt=0)], ...] = ()
    """Learning rates of the sweep; default eight from 3e-4 to 1 (LARS: six, 0.3 to 100)."""
    epochs: int = pydantic.Field(default=50, ge=1)
    """Passes of the linear classifier over the features."""
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    """Of the linear classifier."""
    seeds: int = pydantic.Field(default=3, ge=1)
    """Linear classifiers, each with its own split of the training images, start and order: SEED, SEED + 1, ..."""
    k: int = pydantic.Field(default=20, ge=1)
    """Neighbours that vote."""
    temperature: float = pydantic.Field(default=0.07, gt=0)
    """Temperature of the votes."""
    out: Path | None = None
    """Where run.json goes; default RUN/probe."""
    batch_size: int = pydantic.Field(default=64, ge=1)
    """Images at once."""
    workers: int = pydantic.Field(default=0, ge=0)
    """Processes that read images."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the held-out share and first of the linear classifiers."""


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Probe a run; returns what stands in run.json under 'results'. Raises UserError."""
    run = find_run(config.run, "pretrain")
    if config.data is None:
        raise UserError("give --data DIR, a folder with one sub-folder a class")
    device = pick_device(config.device)
    encoder = load_encoder(run).to(device)
    preprocessing = Preprocessing.model_validate(read_facts(run)["preprocessing"])
    normalization = Normalization(preprocessing.mean, preprocessing.std)
    depth = encoder.config.depth
    blocks = config.blocks or (depth,)
    if not all(1 <= block <= depth for block in blocks):
        raise UserError(f"'blocks' {blocks} are not all between 1 and {depth}, the encoder's depth")
    data = LabelledData.open(
        config.data, config.val, val_share=config.val_share, seed=config.seed, classes=config.classes
    )

    if config.pool == "cls" and isinstance(encoder.config, HieraConfig):
        raise UserError(
            f"--pool cls reads the class token, which the {encoder.config.name} of {run} does not have; leave it out"
        )

    def encode(images: torch.Tensor) -> torch.Tensor:
        features = encoder(normalization.apply(images), taps=blocks)
        if config.pool == "cls":
            return torch.cat([features.normed(block)[:, 0] for block in blocks], dim=1)
        return torch.cat([features.pooled(block) for block in blocks], dim=1)

    # Side by side: a hierarchical encoder's blocks are of several widths.
    widths = [encoder.config.width_at(block) for block in blocks]

    with RunRecord("probe", config.out or run / "probe", config) as record:
        found = []
        for folder in (data.train, data.val):
            loader = eval_loader(folder, preprocessing, batch_size=config.batch_size, workers=config.workers)
            found.append(extract_features(encode, loader, device))
        (bank, bank_labels), (queries, query_labels) = found
        for block, known, asked in zip(blocks, bank.split(widths, 1), queries.split(widths, 1), strict=True):
            print(f"block {block}, {len(bank)} labelled, {len(queries)} classified")
            if config.probe != "linear":
                accuracy = _accuracy(known, bank_labels, asked, query_labels, config)
                record.results[f"knn_top1_block{block}"] = accuracy
                print(f"  k-NN top-1 {accuracy:.2f} %")
            if config.probe != "knn":
                _linear(block, (known, bank_labels, asked, query_labels), config, record)
        record.results.update(
            run=str(run), pool=config.pool, bank=len(bank), queries=len(queries), held_out=data.held_out
        )
    print(f"next: edgemim finetune --init {run} --data {config.data}")
    return record.results


def _accuracy(
    bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, wanted: torch.Tensor, config: ProbeConfig
) -> float:
    try:
        return knn_accuracy(bank, labels, queries, wanted, k=config.k, temperature=config.temperature)
    except ValueError as error:
        raise UserError(str(error)) from error


def _linear(block: int, data: tuple[torch.Tensor, ...], config: ProbeConfig, record: RunRecord) -> None:
    """Train linear classifiers on one block's features; the result goes into the record."""
    settings = ProbeSettings(
        optimizer=config.optimizer,
        rates=sorted_rates(config.rates, config.optimizer),
        epochs=config.epochs,
        weight_decay=config.weight_decay,
        seeds=tuple(range(config.seed, config.seed + config.seeds)),
    )
    found = linear_probe(*data, settings=settings)
    record.results[f"linear_top1_block{block}"] = found.mean
    record.results[f"linear_block{block}"] = found.as_dict()
    chosen = ", ".join(f"{rate:g}" for rate in sorted(set(found.rates)))
    print(
        f"  linear top-1 {found.mean:.2f} ± {found.deviation:.2f} % over {config.seeds} seeds (learning rate {chosen})"
    )
    if found.at_the_edge:
        record.warn(f"block {block}: learning rates {chosen} were chosen, one at an end of the sweep; widen --rates")
