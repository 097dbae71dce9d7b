"""`edgemim track --score`: any trackers' results against a dataset's annotations, under a named toolkit's conventions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from edgemim.commands.tracking.score_page import print_table, write_scores
from edgemim.edge.tracking.layouts import choose_names, open_layout
from edgemim.edge.tracking.metrics import Scores
from edgemim.edge.tracking.protocols import PROTOCOLS, Protocol
from edgemim.edge.tracking.results import TEMPORARY, ResultsFolder, archive_name, opened
from edgemim.edge.tracking.sequences import Sequence as Truth
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.errors import UserError
from edgemim.run import RunRecord, default_folder, prepare_folder

if TYPE_CHECKING:
    from edgemim.commands.track import TrackConfig

_OWN_TOOLKIT = {"lasot": "pytracking", "otb": "pytracking", "uav123": "pytracking", "got10k": "got10k"}
_NAMED = 5


@dataclass(frozen=True)
class Scored:
    """One tracker on one dataset."""

    name: str
    overall: Scores
    sequences: dict[str, Scores]


@dataclass(frozen=True)
class Rules:
    """What a figure belongs to: dataset, protocol, and which frames its shares are taken of."""

    dataset: str
    protocol: Protocol
    exclude_invalid: bool = False

    def one(self, predicted: np.ndarray, truth: Truth) -> Scores:
        """Score one sequence. Raises SequenceError."""
        return self.protocol.score(predicted, truth, self.dataset, exclude_invalid=self.exclude_invalid)

    def whole(self, name: str, parts: dict[str, Scores]) -> Scored:
        """Score a dataset from its sequences."""
        return Scored(name, self.protocol.overall(list(parts.values()), self.dataset), parts)


def score(config: TrackConfig) -> dict[str, Any]:
    """Score result folders or archives; returns what stands in scores.json. Raises UserError.

    Writes scores.json, per_sequence.csv, three plots and report.html into --out.
    """
    if config.dataset is None or config.annotations is None:
        raise UserError("--score needs --dataset and --annotations, the folder or archive of its true boxes")
    rules = choose_rules(config)
    out = config.out or default_folder("score")
    prepare_folder(out, overwrite=config.overwrite)
    with RunRecord("track", out, config) as record, ExitStack() as stack:
        annotations = stack.enter_context(opened(config.annotations))
        roots = [stack.enter_context(opened(path)) for path in config.score]
        names = tracker_names(config.score, roots)
        results = [ResultsFolder(root, name) for root, name in zip(roots, names, strict=True)]
        truths, faults = read_truths(config.dataset, annotations, config.split, config.sequences)
        total = len(truths) + len(faults)
        scored, faults = score_all(results, truths, rules, faults)
        _refuse_or_warn(faults, total, record, skip=config.skip_missing)
        result = write_scores(out, scored, rules, {truth.name: len(truth) for truth in truths}, faults)
        record.results.update(protocol=result["protocol"], trackers=result["overall"], left_out=faults)
        print_table(result)
    print(f"scores in {out / 'scores.json'} and {out / 'per_sequence.csv'}, page in {out / 'report.html'}")
    print("next: edgemim track --score MORE RESULTS ... compares several trackers in one plot")
    return result


def choose_rules(config: TrackConfig) -> Rules:
    """The protocol asked for, or that of the dataset's own toolkit. Raises UserError."""
    assert config.dataset is not None
    name = config.protocol or _OWN_TOOLKIT.get(config.dataset, "clean")
    if config.exclude_invalid_frames and name not in ("pytracking", "ostrack"):
        raise UserError(f"--exclude-invalid-frames is an option of PyTracking's and OSTrack's protocols, not of {name}")
    return Rules(config.dataset, PROTOCOLS[name], config.exclude_invalid_frames)


def read_truths(
    dataset: str, root: Path, split: str = "", names: Sequence[str] = ()
) -> tuple[list[Truth], dict[str, str]]:
    """Annotations without frames, and the sentence for each sequence that cannot be scored. Raises UserError."""
    reader = open_layout(dataset, root, split=split, frames=False)
    truths, faults = [], {}
    for name in track(choose_names(reader, names, root), description="reading annotations", transient=True):
        try:
            truth = reader.read(name)
            if not truth.annotated:
                raise SequenceError(f"sequence {name}: the annotation is its starting box alone, nothing can be scored")
            truths.append(truth)
        except SequenceError as error:
            faults[name] = str(error)
    return truths, faults


def score_all(
    results: Sequence[ResultsFolder], truths: Sequence[Truth], rules: Rules, faults: dict[str, str]
) -> tuple[list[Scored], dict[str, str]]:
    """Score every tracker on the sequences that all of them have whole; the others are named with their fault.

    Raises UserError if no sequence is left.
    """
    faults = dict(faults)
    parts: list[dict[str, Scores]] = [{} for _ in results]
    for truth in track(truths, description="scoring", transient=True):
        for tracker, found in zip(results, parts, strict=True):
            try:
                found[truth.name] = rules.one(tracker.read(truth.name), truth)
            except SequenceError as error:
                faults.setdefault(truth.name, str(error))
    kept = [truth.name for truth in truths if truth.name not in faults]
    if not kept:
        raise UserError(f"no sequence can be scored; the first fault: {next(iter(faults.values()), 'no annotation')}")
    return [
        rules.whole(tracker.name, {name: found[name] for name in kept})
        for tracker, found in zip(results, parts, strict=True)
    ], faults


def tracker_names(given: Sequence[Path], roots: Sequence[Path]) -> list[str]:
    """A name for each: its folder's, or of an archive the one folder's in it, else its own; equal ones are told apart."""
    names = []
    for path, root in zip(given, roots, strict=True):
        inner = path.is_file() and root.parent.name.startswith(TEMPORARY)
        names.append(root.name if inner else archive_name(path))
    names = [
        f"{path.resolve().parent.name}/{name}" if names.count(name) > 1 else name
        for path, name in zip(given, names, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]


def _refuse_or_warn(faults: dict[str, str], total: int, record: RunRecord, *, skip: bool) -> None:
    """Name the sequences that are missing or half written: an error, or with --skip-missing a warning."""
    if not faults:
        return
    named = ", ".join(list(faults)[:_NAMED]) + (", ..." if len(faults) > _NAMED else "")
    sentence = (
        f"{len(faults)} of {total} sequences cannot be scored ({named}); the first: {next(iter(faults.values()))}"
    )
    if not skip:
        raise UserError(f"{sentence}; --skip-missing scores the others")
    record.warn(f"left out for every tracker: {sentence}")
