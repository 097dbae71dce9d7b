"""`python -m tests.golden FOLDER [CASE ...]`: our tensors against the published implementations', one line a tensor.

FOLDER is one case or a folder of cases; CASE picks some by the name of their folder or of what they hold. Exit codes: 0
all within tolerance; 1 something outside, left out without a reason, unknown, unreadable, or no case at all.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.golden.case import Case, Comparison, NotACase, kind_of
from tests.golden.runners import NOT_YET, RUNNERS


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=Path, help="a golden case, or a folder of them")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names of cases; default all in the folder")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        return run(chosen.folder, chosen.cases)
    except NotACase as error:
        print(error, file=sys.stderr)
        return 1


def run(folder: Path, names: Sequence[str] = ()) -> int:
    """Compare the chosen cases of a folder, or all. Raises NotACase if there is none, or none of a name."""
    single = (folder / "case.json").is_file()
    cases = [Case.open(path) for path in ([folder] if single else sorted(p.parent for p in folder.glob("*/case.json")))]
    if not cases:
        raise NotACase(f"{folder} is no golden case and holds none: no case.json; give the folder of a case")
    for name in names:
        if not any(name in (case.folder.name, case.name) for case in cases):
            held = ", ".join(case.folder.name for case in cases)
            raise NotACase(f"{folder} holds no case '{name}'; it holds {held}")
    if names:
        cases = [case for case in cases if case.folder.name in names or case.name in names]
    verdicts = [_show(case) for case in cases]
    done = [verdict for verdict in verdicts if verdict is not None]
    print(f"{sum(done)} of {len(done)} covered cases within tolerance, {len(verdicts) - len(done)} not covered yet")
    if names and len(done) < len(verdicts):
        print("a case that was asked for by name is not covered yet", file=sys.stderr)
        return 1
    return 0 if done and all(done) else 1


def _show(case: Case) -> bool | None:
    """Print one case; whether it is within tolerance, or None if what it holds belongs to a later part."""
    title = case.folder.resolve().name
    kind = kind_of(case.name, [*RUNNERS, *NOT_YET])
    if kind in NOT_YET:
        print(f"{title}: not compared ({NOT_YET[kind]})")
        return None
    if kind is None:
        print(f"{title}: UNKNOWN case '{case.name}'; known are {', '.join(sorted(RUNNERS))}")
        return False
    try:
        result = RUNNERS[kind](case)
    except Exception as error:  # whatever breaks in one case, the others are still compared
        traceback.print_exc()
        print(f"{title}: FAILED, {type(error).__name__}: {error}")
        return False
    _print(title, result)
    return result.passed


def _print(title: str, result: Comparison) -> None:
    verdict = "within tolerance" if result.passed else "OUTSIDE TOLERANCE"
    if result.lines:
        worst = result.worst
        print(
            f"{title}: largest deviation {worst.error:.2e} in {worst.name}, {worst.used:.2%} of its tolerance; {verdict}"
        )
    else:
        print(f"{title}: nothing compared; {verdict}")
    for line in result.lines:
        print(line)
    for name in result.left_out:
        print(f"  -       {name}: not compared")


if __name__ == "__main__":
    sys.exit(main())
