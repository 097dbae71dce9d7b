"""`edgemim track --dataset`: a tracker through all sequences of a dataset, its results in two formats, scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from edgemim.commands.tracking.filmstrip import save_filmstrips
from edgemim.commands.tracking.one_pass import Target, TrackerSource, no_motion, run_passes
from edgemim.commands.tracking.score import Rules, choose_rules, score_all
from edgemim.commands.tracking.score_page import print_table, write_scores
from edgemim.commands.tracking.video import choose_key
from edgemim.edge.artifact import Artifact
from edgemim.edge.machine import usable_cpus
from edgemim.edge.tracking.layouts import choose_names, open_layout
from edgemim.edge.tracking.results import ResultsFolder, finished
from edgemim.edge.tracking.sequences import Sequence as Truth
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.errors import Interrupted, UserError
from edgemim.run import FolderLock, RunRecord, default_folder, find_run, prepare_folder, read_record

if TYPE_CHECKING:
    from edgemim.commands.track import TrackConfig

NO_MOTION = "no-motion"
# What a resumed run must have in common with the one that it goes on.
_SAME = ("artifact", "key", "int8", "runtime", "dataset", "data", "pytracking_int")
_NAMED = 3


@dataclass(frozen=True)
class _Plan:
    """What is to be done: a tracker by name, its sequences, the rules of its scores."""

    name: str
    source: TrackerSource
    truths: list[Truth]
    faults: dict[str, str]
    rules: Rules

    def target(self, out: Path, name: str, *, integers: bool = False) -> Target:
        return Target(out / "pytracking" / name, out / "got10k" / name, integers)


def evaluate(config: TrackConfig) -> dict[str, Any]:
    """Track a dataset in one pass and score it; returns what stands in run.json under 'results'.

    OUT/pytracking/NAME/ and OUT/got10k/NAME/ hold the results, OUT/filmstrips/ a picture of each sequence, the rest as
    `edgemim track --score` writes it. With --resume finished sequences are kept. Raises UserError, after all else is
    done, if a sequence could not be tracked; Interrupted on Ctrl-C.
    """
    plan = _plan(config)
    out = config.out or default_folder("track")
    lock = FolderLock(out)
    try:
        _check_resume(config, out)
        prepare_folder(out, overwrite=config.overwrite, resume=config.resume, resumable=True)
        with RunRecord("track", out, config) as record:
            try:
                faults = plan.faults | _track(plan, config, out)
            except KeyboardInterrupt as error:
                raise Interrupted(f"interrupted; finished sequences are kept: --resume --out {out} goes on") from error
            _finish(plan, config, out, faults, record)
        return record.results
    finally:
        lock.release()


def _plan(config: TrackConfig) -> _Plan:
    if config.data is None or config.dataset is None:
        raise UserError("--dataset needs --data, the folder of the dataset")
    rules = choose_rules(config)
    given = config.artifact or (Path(config.source) if config.source else None)
    source, name = _source(config, find_run(given, "export"))
    reader = open_layout(config.dataset, config.data, split=config.split)
    truths, faults = [], {}
    for sequence in choose_names(reader, config.sequences, config.data):
        try:
            truth = reader.read(sequence)
            truth.init_box  # noqa: B018 (raises where there is nothing to start from)
            truths.append(truth)
        except SequenceError as error:
            faults[sequence] = str(error)
    if not truths:
        raise UserError(f"no sequence can be tracked; the first fault: {next(iter(faults.values()))}")
    return _Plan(name, source, truths, faults, rules)


def _source(config: TrackConfig, folder: Path) -> tuple[TrackerSource, str]:
    """How processes open the tracker, and what its results are called."""
    threads = config.threads or max(1, usable_cpus() // config.workers)
    source = TrackerSource(folder, runtime=config.runtime, threads=threads)
    if not source.is_artifact and (folder / "model").is_dir():
        return source, folder.resolve().name
    artifact = Artifact.open(folder)
    key = choose_key(artifact, config.key, config.runtime, int8=config.int8)
    return TrackerSource(folder, key, config.runtime, threads), f"{artifact.manifest.name}-{key}"


def _check_resume(config: TrackConfig, out: Path) -> None:
    """Results of two trackers in one folder would be scored as one. Raises UserError."""
    if not config.resume:
        return
    before, now = read_record(out).get("config", {}), config.model_dump(mode="json")
    for facts in (before, now):  # the tracker may be named in two places
        facts["artifact"] = facts.get("artifact") or facts.get("source")
    for name in _SAME if "dataset" in before else ():
        if before.get(name) != now[name]:
            raise UserError(
                f"{out} was made with {name.replace('_', '-')} {before.get(name)}, not {now[name]}; resume with the same "
                "or choose another --out"
            )


def _track(plan: _Plan, config: TrackConfig, out: Path) -> dict[str, str]:
    """Track what is not finished; returns the sentences of sequences that broke off."""
    target = plan.target(out, plan.name, integers=config.pytracking_int)
    waiting = [truth for truth in plan.truths if not finished(target.pytracking, truth.name, len(truth))]
    if len(waiting) < len(plan.truths):
        print(f"{len(plan.truths) - len(waiting)} of {len(plan.truths)} sequences are finished already")
    with Progress(transient=True) as progress:
        task = progress.add_task("tracking", total=len(waiting))

        def done(name: str) -> None:
            progress.update(task, advance=1, description=f"tracked {name}")

        faults = run_passes(plan.source, waiting, target, workers=config.workers, on_done=done)
    if config.baseline:
        for truth in plan.truths:
            plan.target(out, NO_MOTION).write(truth.name, no_motion(truth))
    return faults


def _finish(plan: _Plan, config: TrackConfig, out: Path, faults: dict[str, str], record: RunRecord) -> None:
    """Score what was tracked, draw it, and say what was not."""
    done = [truth for truth in plan.truths if truth.name not in faults]
    names = [plan.name, *([NO_MOTION] if config.baseline else [])]
    record.results.update(tracker=plan.name, sequences=len(done), failed=faults, out=str(out))
    if done:
        results = [ResultsFolder(out / "pytracking" / name, name) for name in names]
        record.results["update_fps"] = _update_fps(out / "pytracking" / plan.name, done)
        pictures = {}
        if config.filmstrip:
            boxes = {tracker.name: {truth.name: tracker.read(truth.name) for truth in done} for tracker in results}
            pictures = save_filmstrips(out / "filmstrips", done, boxes, config.filmstrip)
        _score(plan, out, results, done, faults, pictures, record)
        print(f"results in {out / 'pytracking' / plan.name} and {out / 'got10k' / plan.name}; record in {out}")
    if faults:
        named = ", ".join(list(faults)[:_NAMED]) + (", ..." if len(faults) > _NAMED else "")
        sentence = f"{len(faults)} sequences could not be tracked ({named}); the first: {next(iter(faults.values()))}"
        if not config.skip_missing:
            raise UserError(
                f"{sentence}; the others ({len(done)}) are done: mend it and go on with --resume --out {out}"
            )
        record.warn(sentence)
    print(f"next: edgemim track --score {out / 'pytracking' / plan.name} OTHER ... compares it with other trackers")


def _score(
    plan: _Plan,
    out: Path,
    results: Sequence[ResultsFolder],
    done: Sequence[Truth],
    faults: dict[str, str],
    pictures: dict[str, Path],
    record: RunRecord,
) -> None:
    annotated = [truth for truth in done if truth.annotated]
    if not annotated:
        print("nothing to score: the annotation is the starting boxes alone")
        return
    scored, left_out = score_all(results, annotated, plan.rules, faults)
    frames = {truth.name: len(truth) for truth in annotated}
    result = write_scores(out, scored, plan.rules, frames, left_out, pictures)
    record.results.update(protocol=result["protocol"], trackers=result["overall"])
    print_table(result)


def _update_fps(folder: Path, truths: Sequence[Truth]) -> float:
    """Frames a second of the tracker's updates alone: no decoding, no start."""
    times = [np.loadtxt(folder / f"{truth.name}_time.txt", ndmin=1)[1:] for truth in truths]
    seconds = float(sum(part.sum() for part in times))
    return sum(map(len, times)) / seconds if seconds else 0.0
