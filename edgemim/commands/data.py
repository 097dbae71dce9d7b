"""`edgemim data check`: count and check images in a folder or any other form, change nothing."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgemim.config import Config
from edgemim.errors import UserError
from edgemim.run import RUNS, RunRecord, prepare_folder, write_text

if TYPE_CHECKING:
    from edgemim.data.survey import Contents, Findings


class DataCheckConfig(Config):
    """Count and check images: sizes, unreadable and odd files, duplicates, class balance.

    The images lie in a folder (class folders, or train/ and val/ of such), or are named by a CSV file of
    path,label[,split], or packed: tar shards (KEY.jpg with KEY.cls or KEY.json), a Hugging Face dataset on disk (a folder
    of save_to_disk, or parquet files). All other verbs' --data takes the same.
    """

    folder: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder or file to check; it is only read."""
    out: Path | None = None
    """Folder for run.json and findings.json (every finding by name); default runs/data-check/NAME."""
    overwrite: bool = False
    """Lose what an earlier check left in --out. The default folder is always overwritten."""
    workers: int | None = Field(None, ge=0)
    """Processes that read files; default one a core, at most 8. 0: no extra process."""
    decode: bool = True
    """Decode every image. Without, only headers are read: faster, but cut-off files stay unseen."""
    max_pixels: int = Field(128_000_000, ge=1)
    """Images with more pixels count as unreadable, as in training."""
    tiny_side: int = Field(32, ge=1)
    """Images whose short side is below this are listed as tiny, in pixels."""
    huge_pixels: int = Field(25_000_000, ge=1)
    """Images with more pixels are listed as huge: they decode slowly."""
    show: int = Field(10, ge=0)
    """Examples to print of each kind of finding."""


def data_check(config: DataCheckConfig) -> dict[str, Any]:
    """Check a set of images; print and return the summary, write run.json and findings.json.

    Raises UserError if it is missing, holds no image or is damaged, or if results would be written into it.
    """
    from edgemim.data.survey import Findings
    from edgemim.data.survey_sets import survey_contents

    if config.folder is None:
        raise UserError("name the folder to check: edgemim data check DIR")
    contents = survey_contents(config.folder)
    out = _output_folder(config.folder, config)
    with RunRecord("data check", out, config) as record:
        findings = Findings(contents)
        for name, facts in zip(contents.images, _inspected(contents, config), strict=True):
            findings.add(name, facts)
        summary = findings.summary()
        write_text(out / "findings.json", json.dumps(findings.details(), indent=1) + "\n")
        record.results.update(summary)
    console = Console(highlight=False, soft_wrap=True)
    for part in render(summary, findings, config.show):
        console.print(part)
    console.print(_text(f"\nevery finding by name: {out / 'findings.json'}"))
    console.print(_text(f"next: edgemim pretrain --data {printable(shlex.quote(str(config.folder)))}"))
    return summary


def _output_folder(folder: Path, config: DataCheckConfig) -> Path:
    name = folder.resolve().name or "root"
    out = config.out or RUNS / "data-check" / name
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"results would be written into the checked folder ({out}); give an --out outside it")
    prepare_folder(out, overwrite=config.overwrite or config.out is None)
    return out


def _inspected(contents: Contents, config: DataCheckConfig) -> Iterator[Any]:
    """The facts of each file in order, with a progress bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from edgemim.data.inspection import FileLimits
    from edgemim.data.survey_sets import inspect_contents

    limits = FileLimits(config.max_pixels, config.tiny_side, config.huge_pixels, config.decode)
    workers = min(8, os.cpu_count() or 1) if config.workers is None else config.workers
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(inspect_contents(contents, limits, workers), total=len(contents.images))


def render(summary: dict[str, Any], findings: Findings, show: int) -> Iterator[Table | Text]:
    """The report for the terminal. Names out of the folder are never read as markup or control codes."""
    yield _text(
        f"{summary['images']:,} images ({summary['total_bytes'] / 1e6:,.1f} MB), {summary['readable']:,} readable, "
        f"{summary['unreadable']:,} unreadable, {summary['other_files']:,} other files"
    )
    if summary["unreadable"] > 0.01 * summary["images"]:
        yield _text("more than 1 % are unreadable: a training run stops there (max_unreadable); repair or remove them")
    yield _spreads(summary)
    yield _text(f"formats: {_counts(summary['formats'])}\nmodes: {_counts(summary['modes'])}")
    for split, balance in summary["splits"].items():
        yield from _balance(split, balance, show)
    details = findings.details()
    yield from _listing(
        "unreadable files", (f"{entry['path']}: {entry['reason']}" for entry in details["unreadable"]), show
    )
    folders = (f"{entry['path']}: {entry['reason']}" for entry in details["unreadable_folders"])
    yield from _listing("unreadable folders", folders, show)
    odd = (f"{entry['path']}: {', '.join(entry['kinds'])}" for entry in details["odd"])
    yield from _listing(f"odd files ({_counts(summary['odd'])})", odd, show)
    yield from _listing("files that are no images", details["other_files"], show)
    for key in ("duplicates", "duplicates_across_splits", "duplicates_across_classes"):
        yield from _listing(f"groups of {key.replace('_', ' ')}", map(" = ".join, details[key]), show)


def printable(name: str) -> str:
    """A file's or class's name with line breaks, control codes and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def _balance(split: str, balance: dict[str, Any], show: int) -> Iterator[Table | Text]:
    classes = sorted(balance["classes"].items(), key=lambda item: -item[1])
    title = printable(split) if split else "all"
    if not classes:
        note = f" ({printable(balance['note'])})" if balance.get("note") else ""
        yield _text(f"{title}: {balance['images']:,} images without classes{note}")
    else:
        yield _text(
            f"{title}: {balance['images']:,} images in {len(classes)} classes, "
            f"the largest {balance['imbalance']} times the smallest"
        )
        table = Table("class", "images", box=None, pad_edge=True)
        shown = classes if len(classes) <= 2 * show else [*classes[:show], ("…", None), *classes[len(classes) - show :]]
        for name, count in shown:
            table.add_row(_text(printable(name)), "" if count is None else f"{count:,}")
        yield table
    yield from _listing(f"empty classes in {title}" if split else "empty classes", balance["empty"], show)


def _spreads(summary: dict[str, Any]) -> Table:
    table = Table("", "min", "median", "max", box=None)
    for key in ("width_px", "height_px", "file_bytes"):
        if summary[key]:
            table.add_row(key, *(f"{summary[key][part]:,.0f}" for part in ("min", "median", "max")))
    return table


def _listing(title: str, lines: Iterable[str], show: int) -> Iterator[Text]:
    entries = list(lines)
    if not entries:
        return
    more = [f"  … and {len(entries) - show:,} more"] if len(entries) > show else []
    yield _text(
        "\n".join([f"{title}: {len(entries):,}", *(f"  {printable(entry)}" for entry in entries[:show]), *more])
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _text(content: str) -> Text:
    """Text that rich prints as it is: no markup, no highlighting."""
    return Text(content)
