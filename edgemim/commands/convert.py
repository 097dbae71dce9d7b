"""`edgemim convert`: a published checkpoint under its original names becomes a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from edgemim.commands.convert_tracker import read_tracker
from edgemim.config import Config
from edgemim.edge.artifact import sha256_of
from edgemim.edge.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from edgemim.errors import UserError
from edgemim.models.convert import Converted, FamilyName, read_published
from edgemim.models.convert.encoder import KeyFate
from edgemim.models.weights import load_weights, save_model
from edgemim.run import FolderLock, RunRecord, default_folder, prepare_folder
from edgemim.tasks.classification import build_model

_CROP_PCT = 0.875


class ConvertConfig(Config):
    """Make a run of a published checkpoint; every tensor of the file is used, or left behind for a reason that is shown.

    The run holds the encoder, for finetune, probe and --teacher checkpoint; with --keep-head the classifier, for
    evaluate and export; of ostrack a tracker, for track and export. Sizes come from the tensors. Nothing in the file is executed.

    Example: edgemim convert mae_pretrain_vit_base.pth --from mae
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """The checkpoint: .safetensors, a pickle of tensors (.pth, .pt), or PaddlePaddle's arrays (.pdparams)."""
    family: Annotated[FamilyName | Literal["ostrack"] | None, tyro.conf.arg(name="from", aliases=["--family"])] = None
    """Whose code wrote it (D-MAE's and D2-MAE's wrappers are mae-lite's; the lightweight study's trackers are ostrack's)."""
    heads: int | None = pydantic.Field(default=None, ge=1)
    """Attention heads, which no file tells; default what the family has at this width."""
    keep_head: bool = False
    """Keep the file's classifier: the run is a fine-tuned one."""
    labels: Path | None = None
    """With --keep-head: text file with the name of a class a line; default their numbers."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the input's channels that the network was trained with, on the scale of [0, 1]. The authors' files have
    ImageNet's; some of timm's have 0.5 0.5 0.5."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Deviation of the input's channels that the network was trained with."""
    out: Path | None = None
    """Folder of the run; default a new one below runs/."""
    overwrite: bool = False
    """Lose what the folder holds."""


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Convert a file; writes a run folder and returns what stands in its run.json under 'results'.

    Raises:
        UserError: on a file that is missing, damaged, refused, another family's or not wholly understood.
    """
    if config.file is None:
        raise UserError("give the FILE of a published checkpoint")
    if config.family is None:
        raise UserError(f"give --from, the family of {config.file}; `edgemim convert --help` lists them")
    if config.labels is not None and not config.keep_head:
        raise UserError("--labels would have no effect without --keep-head; add it or leave --labels out")
    config = config.model_copy(update={"file": config.file.absolute()})
    assert config.file is not None and config.family is not None
    if config.family == "ostrack":
        return _tracker(config, config.file)
    converted = read_published(config.file, config.family, config.heads)
    tensors, facts = _classifier(converted, config) if config.keep_head else _encoder(converted, config)
    out, results = _write(config, _results(converted, config), tensors, facts)
    _show(_kept(converted, config), config)
    _tell(converted)
    _next(converted, config, out)
    return results


def _tracker(config: ConvertConfig, path: Path) -> dict[str, Any]:
    if config.keep_head:
        raise UserError("--keep-head is for classifiers; a tracker keeps its head anyway: leave it out")
    task, fates = read_tracker(path, config.heads, mean=config.mean, std=config.std)
    figures = {**_account(config, fates), "tracker": task.model.size.model_dump(mode="json")}
    out, results = _write(config, figures, task.model.state_dict(), task.facts())
    _show(fates, config)
    size, encoder = task.model.size, task.model.size.encoder
    print(
        f"tracker: width {encoder.width}, depth {encoder.depth}, {encoder.heads} heads, template {size.template_size}, "
        f"search region {size.search_size} pixels, head {size.head_width}"
    )
    print("candidate elimination: as published, for the file says nothing of it")
    print(f"tracker in {out}/model; next: edgemim track {out} --dataset otb --data DIR")
    return results


def _write(
    config: ConvertConfig, figures: dict[str, Any], tensors: dict[str, Tensor], facts: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Write the run; its folder, and what stands in its run.json under 'results'."""
    out = config.out or default_folder("convert")
    lock = FolderLock(out)
    try:
        prepare_folder(out, overwrite=config.overwrite)
        with RunRecord("convert", out, config) as record:
            record.results.update(figures)
            save_model(out / "model", tensors, facts)
    finally:
        lock.release()
    return out, record.results


def _encoder(converted: Converted, config: ConvertConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    facts = {
        "kind": "encoder",
        "encoder": converted.encoder.config.model_dump(mode="json"),
        "preprocessing": _preprocessing(converted, config, crop_pct=1.0),
    }
    return converted.encoder.vit.state_dict(), facts


def _classifier(converted: Converted, config: ConvertConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The fine-tuned network's state and facts. Raises UserError without a classifier, or on labels of another count."""
    found = (value for key, value in converted.classifier.items() if key in ("head.weight", "head.fc.weight"))
    head = next(found, None)
    if head is None or not head.shape[0]:
        raise UserError(f"{config.file} holds no classifier; leave --keep-head out")
    pool = "avg" if "head.weight" not in converted.classifier or "fc_norm.weight" in converted.classifier else "token"
    size = converted.encoder.config.as_classifier()
    architecture: dict[str, Any] = {"vit": size.model_dump(mode="json"), "pool": pool}
    own = {k: v for k, v in converted.encoder.vit.state_dict().items() if pool == "token" or not k.startswith("norm.")}
    model = build_model(architecture, head.shape[0])
    try:
        load_weights(model, {**own, **converted.classifier})
    except UserError as error:
        raise UserError(f"{config.file}: {error}") from error
    facts = {
        "kind": "classification",
        "architecture": architecture,
        "labels": _labels(config.labels, head.shape[0]),
        "preprocessing": _preprocessing(converted, config, crop_pct=_CROP_PCT),
    }
    return model.state_dict(), facts


def _preprocessing(converted: Converted, config: ConvertConfig, crop_pct: float) -> dict[str, Any]:
    return Preprocessing(
        image_size=converted.encoder.config.image_size,
        crop_pct=crop_pct,
        mean=config.mean,
        std=config.std,
    ).model_dump(mode="json")


def _labels(path: Path | None, count: int) -> list[str]:
    if path is None:
        return [str(number) for number in range(count)]
    try:
        labels = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --labels {path}: {error}") from error
    if len(labels) != count or len(set(labels)) != count:
        raise UserError(f"{path} names {len(set(labels))} classes, the classifier has {count}")
    return labels


def _kept(converted: Converted, config: ConvertConfig) -> tuple[KeyFate, ...]:
    """What became of each tensor, the classifier's among those that were used if it is kept."""
    return converted.fates_with_head() if config.keep_head else converted.fates


def _results(converted: Converted, config: ConvertConfig) -> dict[str, Any]:
    return {
        **_account(config, _kept(converted, config)),
        "encoder": converted.encoder.config.model_dump(mode="json"),
        "notes": list(converted.notes),
        "new": [] if config.keep_head else list(converted.new),
    }


def _account(config: ConvertConfig, fates: tuple[KeyFate, ...]) -> dict[str, Any]:
    """The file, and what became of each of its tensors."""
    assert config.file is not None
    return {
        "file": str(config.file),
        "sha256": sha256_of(config.file),
        "family": config.family,
        "tensors": len(fates),
        "used": sum(fate.becomes is not None for fate in fates),
        "keys": [
            {"key": fate.key, "shape": list(fate.shape), "becomes": fate.becomes, "note": fate.note} for fate in fates
        ],
    }


def _show(fates: tuple[KeyFate, ...], config: ConvertConfig) -> None:
    table = Table(title=f"{config.file}: {config.family}")
    for column in ("tensors", "where", "what became of them"):
        table.add_column(column, justify="right" if column == "tensors" else "left")
    groups = Counter((_group(fate.key), _outcome(fate)) for fate in fates)
    for (group, outcome), count in groups.items():
        table.add_row(str(count), escape(group), outcome)
    Console().print(table)
    used = sum(fate.becomes is not None for fate in fates)
    print(f"{used} of {len(fates)} tensors used, {len(fates) - used} left behind for the reasons above")


def _tell(converted: Converted) -> None:
    size = converted.encoder.config
    print(
        f"{size.name}: width {size.width}, depth {size.depth}, {size.heads} heads, patches of {size.patch_size}, "
        f"{size.image_size} pixels, MLP ratio {size.mlp_ratio:g}"
    )
    for note in converted.notes:
        print(note)


def _group(key: str) -> str:
    """A key up to the number of its block, or up to its weight and bias."""
    parts = key.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    if numbers and numbers[0] + 1 < len(parts):
        return ".".join(parts[: numbers[0]]) + ".*"
    return ".".join(parts[:-1]) if parts[-1] in ("weight", "bias") else key


def _outcome(fate: KeyFate) -> str:
    if fate.becomes is None:
        return f"left behind: {fate.note}"
    return f"used ({fate.note})" if fate.note else "used"


def _next(converted: Converted, config: ConvertConfig, out: Path) -> None:
    if config.keep_head:
        print(f"classifier in {out}/model; next: edgemim evaluate {out} --data DIR")
        return
    if converted.classifier:
        print("the file's classifier was left behind: --keep-head makes a run of it for evaluate and export")
    print(f"encoder in {out}/model; next: edgemim finetune --init {out} --data DIR")
