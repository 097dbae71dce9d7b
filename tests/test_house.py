"""The laws of the house, checked on the tree itself: arrows, mirrors, recipes, sizes, and names that may not appear."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from edgemim.cli import VERBS
from edgemim.config import Config, load_yaml

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "edgemim"
MAX_LINES = 350

# Modules whose tests stand elsewhere, each with the reason.
TESTED_ELSEWHERE = {
    "errors.py": "exit codes, in tests/test_cli.py",
    "commands/pretrain.py": "whole runs, in tests/test_journey.py and tests/faults",
    "commands/evaluate.py": "whole runs, in tests/test_journey.py",
    "data/workers.py": "deaths, hangs and signals of workers, in tests/data/test_loader.py with the loader they serve",
}


def modules() -> list[Path]:
    """All modules of the package, relative to it."""
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Absolute names that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_arrows_between_layers_fall() -> None:
    pytest.importorskip("importlinter", reason="import-linter: pip install 'edgemim[dev]'")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run([sys.executable, "-c", program, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def test_every_module_has_its_test() -> None:
    missing = []
    for module in modules():
        if module.name in ("__init__.py", "__main__.py") or module.as_posix() in TESTED_ELSEWHERE:
            continue
        mirror = REPOSITORY / "tests" / module.with_name(f"test_{module.name}")
        if not mirror.is_file():
            missing.append(mirror.relative_to(REPOSITORY).as_posix())
    assert missing == []


def test_exceptions_from_the_mirror_are_still_needed() -> None:
    for name in TESTED_ELSEWHERE:
        module = Path(name)
        assert (PACKAGE / module).is_file(), f"{name} is gone: take it off the list"
        mirror = REPOSITORY / "tests" / module.with_name(f"test_{module.name}")
        assert not mirror.is_file(), f"{name} has its own test: take it off the list"


def test_every_test_has_its_module() -> None:
    """A test of a module that moved is found, too. Tests of whole chains stand at the top or in a folder of their own."""
    # Of the unions in the packages' __init__.py.
    allowed = {
        "tests/methods/test_every_method.py",
        "tests/methods/test_invariance.py",
        "tests/methods/test_resume_every_method.py",
        "tests/tasks/test_load_task.py",
    }
    for folder in sorted(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        mirror = REPOSITORY / "tests" / folder.relative_to(PACKAGE)
        for test in sorted(mirror.glob("test_*.py")):
            if test.relative_to(REPOSITORY).as_posix() not in allowed:
                assert (folder / test.name.removeprefix("test_")).is_file(), f"{test} tests no module of {folder}"


def test_modules_are_short_and_say_what_they_do() -> None:
    for module in modules():
        text = (PACKAGE / module).read_text()
        assert text.count("\n") <= MAX_LINES, f"{module} has more than {MAX_LINES} lines"
        docstring = ast.get_docstring(ast.parse(text))
        assert docstring, f"{module} does not say what it is for"
        if module.name != "__main__.py":
            assert re.match(r"[^\n]+(\.|\n[a-z][^\n]*\.)", docstring), f"{module}: one sentence first"


def test_there_is_no_drawer_for_everything() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(REPOSITORY / "tests").rglob("*.py")]:
        assert path.stem not in ("utils", "util", "helpers", "misc", "common"), f"{path} needs a name"


def test_the_library_does_not_import_the_programs_beside_it() -> None:
    for module in modules():
        for name in imports(PACKAGE / module):
            assert name.partition(".")[0] not in ("export", "tracking", "tests", "configs"), f"{module} imports {name}"


def test_no_pickle() -> None:
    """Weights are safetensors; what others pickled is read with weights-only loading, or not at all."""
    for module in modules():
        path = PACKAGE / module
        assert {"pickle", "dill", "joblib", "cloudpickle", "shelve"}.isdisjoint(imports(path)), f"{module} pickles"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save"):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{module}:{node.lineno} reads or writes a pickle"


def test_no_seed_of_the_clock_and_no_machine_in_the_code() -> None:
    for module in modules():
        text = (PACKAGE / module).read_text()
        assert not re.search(r"manual_seed\(\s*(int\()?time", text), f"{module} takes its seed from the clock"
        assert not re.search(r"[\"'](/work|/home/|/root/|/mnt/)", text), f"{module} names a machine's path"


def test_method_modules_name_their_paper() -> None:
    pytest.importorskip("torch")
    from typing import get_args

    from edgemim.methods import MethodConfig

    union = get_args(MethodConfig)[0]
    for method in get_args(union) or (union,):
        docstring = sys.modules[method.__module__].__doc__ or ""
        assert re.search(r"arXiv \d{4}\.\d{4,5}", docstring), f"{method.__module__} does not cite its paper"


def test_only_the_fixture_names_the_shared_folder() -> None:
    spellings = re.compile("EDGEMIM" + "_SHARED|[./]" + "/shared|parent / .sha" + "red|[\"']/wo" + "rk/")
    for path in sorted((REPOSITORY / "tests").rglob("*")):
        if path.suffix in (".py", ".sh") and path.name != "conftest.py":
            assert not spellings.search(path.read_text()), f"{path} names the shared folder"


RECIPES = sorted((REPOSITORY / "configs").rglob("*.y*ml"))


def config_class_of(recipe: Path) -> type[Config]:
    """The config class of the verb, or of the script's `main`, that a recipe's own command names."""
    if script := re.search(r"^# Command: python benchmarks/(\w+)\.py ", recipe.read_text(), re.MULTILINE):
        return get_type_hints(importlib.import_module(f"benchmarks.{script[1]}").main)["config"]
    found = re.search(r"^# Command: .*?\bedgemim ((?:data )?[a-z]+)\b", recipe.read_text(), re.MULTILINE)
    assert found, f"{recipe} does not open with its command"
    verb = VERBS[found[1]]
    return getattr(importlib.import_module(f"edgemim.commands.{verb.module}"), verb.config)


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: str(recipe.relative_to(REPOSITORY)))
def test_a_recipe_opens_with_paper_command_and_result_and_loads(recipe: Path) -> None:
    pytest.importorskip("torch")
    opening = re.match(r"(#[^\n]*\n)+", recipe.read_text())
    assert opening, f"{recipe} does not open with a comment"
    for word in ("# Paper", "# Command: ", "# Expected", "# Measured: "):
        assert word in opening[0], f"{recipe} does not say {word!r}"
    path = recipe.relative_to(REPOSITORY).as_posix()
    assert f"--config {path}" in opening[0], f"{recipe}: its command names another file"
    load_yaml(recipe, config_class_of(recipe))
    for other in re.findall(r"configs/[\w./-]+\.yaml", recipe.read_text()):
        assert (REPOSITORY / other).is_file(), f"{recipe} mentions {other}, which is not there"
