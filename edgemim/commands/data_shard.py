"""`edgemim data shard`: any set of images as tar shards, a few large files that are read image by image."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console
from rich.progress import track

from edgemim.config import Config
from edgemim.errors import UserError
from edgemim.run import FolderLock, RunRecord, prepare_folder


class DataShardConfig(Config):
    """Write tar shards (WebDataset's layout) of a folder, a CSV file, other shards or a Hugging Face dataset.

    The images' bytes stay as they are. Training reads a shard where it lies, in the same keyed order as a folder.
    Example: edgemim data shard photos/ --out shards/
    """

    data: Annotated[Path | None, tyro.conf.Positional] = None
    """What `edgemim data check` takes; it is only read."""
    out: Path | None = None
    """Folder of the shards, with a folder for each split."""
    per_shard: int = Field(1000, ge=1)
    """Images in a file."""
    resume: bool = False
    """Go on where an interrupted `data shard` of the same images stopped."""
    overwrite: bool = False
    """Lose what an earlier one left in --out."""


def data_shard(config: DataShardConfig) -> dict[str, Any]:
    """Write shards and open them again; returns what stands in run.json under 'results'.

    Raises UserError if there is nothing to read, if an image cannot be, if the folder holds something else, or if the disk
    is full.
    """
    from edgemim.data.shard_writer import ShardWriter, sets_to_write
    from edgemim.data.sources import find_sources

    if config.data is None or config.out is None:
        raise UserError("give what to read and where to write: edgemim data shard DIR --out SHARDS")
    data, out = config.data, config.out
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise UserError(f"shards would be written into the folder that is read ({out}); give an --out outside it")
    sources = find_sources(data)
    sets = {split: source.open(progress=True) for split, source in sources.splits.items()}
    writer = ShardWriter(out, sets_to_write(sets), config.per_shard)
    lock = FolderLock(out)
    try:
        prepare_folder(out, overwrite=config.overwrite, resume=config.resume, resumable=True)
        writer.begin(resume=config.resume)
        with RunRecord("data shard", out, config) as record:
            missing = writer.missing()
            console = Console(stderr=True)
            shown = track(missing, "writing shards", console=console, transient=True, disable=not console.is_terminal)
            for split, number in shown:
                writer.write(split, number)
            record.results.update(_checked(out, writer.plan["splits"]), written=len(missing))
    finally:
        lock.release()
    results = record.results
    print(f"{results['images']:,} images in {results['shards']:,} shards, {results['bytes'] / 1e6:,.1f} MB, in {out}")
    print(f"next: edgemim pretrain --data {shlex.quote(str(out))}")
    return results


def _checked(out: Path, splits: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the shards as training will find them. Raises UserError if they are not what was written."""
    from edgemim.data.sources import find_sources

    found = find_sources(out).splits
    counts = {split: len(source.open()) for split, source in found.items()}
    wanted = {split: facts["images"] for split, facts in splits.items()}
    if counts != wanted:
        raise UserError(f"{out} holds {counts} images, not {wanted}: was something else put there? Write it again")
    files = [path for source in found.values() for path in source.files]
    return {"images": sum(counts.values()), "shards": len(files), "bytes": sum(path.stat().st_size for path in files)}
