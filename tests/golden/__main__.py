"""`python -m tests.golden FOLDER`: our tensors against the published implementations', one line a tensor.

FOLDER is one case or a folder of cases. Exit codes: 0 all within tolerance, 1 something outside, 2 no case to run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.golden.case import NotACase, NotCovered
from tests.golden.runners import RUNNERS, run_case


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=Path, help="a golden case, or a folder of them")
    folder: Path = parser.parse_args(argv).folder
    torch.set_num_threads(1)
    try:
        return _one(folder) if (folder / "case.json").is_file() else _all(folder)
    except NotACase as error:
        print(error, file=sys.stderr)
        return 2


def _one(folder: Path) -> int:
    try:
        return 0 if _show(folder) else 1
    except NotCovered as case:
        print(f"no code covers case '{case}' yet; covered are {', '.join(RUNNERS)}", file=sys.stderr)
        return 2


def _all(folder: Path) -> int:
    cases = sorted(path.parent for path in folder.glob("*/case.json"))
    if not cases:
        raise NotACase(f"{folder} is no golden case and holds none: no case.json; give the folder of a case")
    passed: list[bool] = []
    for case in cases:
        try:
            passed.append(_show(case))
        except NotCovered as name:
            print(f"{case.name}: not covered (no code for case '{name}' yet)")
    print(f"{sum(passed)} of {len(passed)} covered cases within tolerance, {len(cases) - len(passed)} not covered")
    if not passed:
        print(f"none of the cases in {folder} is covered; covered are {', '.join(RUNNERS)}", file=sys.stderr)
        return 2
    return 0 if all(passed) else 1


def _show(folder: Path) -> bool:
    result = run_case(folder)
    print(f"{folder.name}: {'within tolerance' if result.passed else 'OUTSIDE TOLERANCE'}")
    for line in result.lines:
        print(line)
    for name in result.left_out:
        print(f"  -       {name}: not covered")
    return result.passed


if __name__ == "__main__":
    sys.exit(main())
