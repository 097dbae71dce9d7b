"""The verb table: help of every verb, exit codes, the closest verb on a typo, and what starts without torch."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import edgemim
from edgemim import cli, errors
from edgemim.cli import VERBS, main
from edgemim.config import Config
from edgemim.errors import EdgemimError, UserError

COMMANDS = Path(edgemim.__file__).parent / "commands"
WITHOUT_TORCH = ("benchmark", "data", "doctor", "predict", "track")


def landed(module: str) -> str:
    """The name of a module of `commands`, or a skip for as long as its file is not there."""
    if not ((COMMANDS / f"{module}.py").is_file() or (COMMANDS / module / "__init__.py").is_file()):
        pytest.skip(f"edgemim/commands/{module}.py is not there yet")
    return module


class FakeConfig(Config):
    """A verb for tests."""

    count: int = 1
    """How many."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A verb named `fake`; give it a function `act`."""
    module = types.ModuleType("edgemim.commands.fake")
    module.FakeConfig = FakeConfig  # pyright: ignore
    monkeypatch.setitem(sys.modules, "edgemim.commands.fake", module)
    monkeypatch.setitem(VERBS, "fake", cli.Verb("fake", "FakeConfig", "act", "a verb for tests"))
    return module


@pytest.mark.parametrize("name", sorted(VERBS))
def test_help_of_every_verb(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    landed(VERBS[name].module)
    if VERBS[name].module not in WITHOUT_TORCH:
        pytest.importorskip("torch")
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    plain = re.sub(r"[│\s]+", " ", text)
    assert f"usage: edgemim {name}" in text
    module = sys.modules[f"edgemim.commands.{VERBS[name].module}"]
    config = getattr(module, VERBS[name].config)
    assert issubclass(config, Config)
    for key, field in config.model_fields.items():
        shown = (f"--{key.replace('_', '-')}", key.upper())  # positional ones stand in capitals
        assert any(word in text for word in shown), key
        # Where nothing is chosen yet, such as a teacher, there are only names to choose from.
        later = field.default is None and f"--{key.replace('_', '-')} NAME:" in plain
        assert later or (field.description or "?")[:30] in plain, key
    assert "{None}" not in text  # a value is shown by what people write
    assert callable(getattr(module, VERBS[name].function))


@pytest.mark.parametrize("name", sorted(VERBS))
def test_a_misspelt_flag_exits_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    landed(VERBS[name].module)
    if VERBS[name].module not in WITHOUT_TORCH:
        pytest.importorskip("torch")
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--no-such-flag", "3"])
    assert stop.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err


def test_the_list_of_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        for name, verb in VERBS.items():
            assert f"  {name} " in text
            assert verb.summary in text


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") >= 2


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["pretrian"], "pretrain"),
        (["bench"], "benchmark"),
        (["data"], "data check"),
        (["data", "chek"], "data check"),
        (["data", "shar"], "data shard"),
        (["zzz"], None),
    ],
)
def test_an_unknown_verb_exits_2_with_the_closest(
    words: list[str], near: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert f"unknown verb '{words[0]}'" in sentence
    assert ("did you mean" in sentence) is (near is not None)
    assert near is None or f"'{near}'" in sentence


TABLE = {"UserError": 2, "GateRefused": 3, "MissingLibrary": 4, "NoGpu": 5, "ModelRefused": 6}
TABLE |= {"SavedOnSignal": 75, "Interrupted": 130, "EdgemimError": 1}


def test_the_table_of_exit_codes_is_complete() -> None:
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name: cls.exit_code for name, cls in classes.items()} == TABLE
    assert all(cls.__doc__ for cls in classes.values())


@pytest.mark.parametrize("name", sorted(TABLE))
def test_an_error_is_one_sentence_and_its_code(
    name: str, fake: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(config: FakeConfig) -> None:
        raise getattr(errors, name)("photos/ holds no images; give another --data")

    fake.act = act  # pyright: ignore
    assert main(["fake"]) == TABLE[name]
    assert capsys.readouterr().err == "edgemim: photos/ holds no images; give another --data\n"


def test_a_verb_gets_its_config_and_0_is_success(fake: types.ModuleType) -> None:
    seen = []
    fake.act = seen.append  # pyright: ignore
    assert main(["fake", "--count", "7"]) == 0
    assert seen == [FakeConfig(count=7)]


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [
        (RuntimeError("odd"), 1, True),
        (KeyboardInterrupt(), 130, False),
        (BrokenPipeError(), 141, False),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 4, False),
        (ModuleNotFoundError("No module named 'timm.layers'", name="timm.layers"), 4, False),
        (ModuleNotFoundError("No module named 'edgemim.odd'", name="edgemim.odd"), 1, True),
    ],
)
def test_other_endings(
    error: BaseException, code: int, traceback: bool, fake: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(config: FakeConfig) -> None:
        raise error

    fake.act = act  # pyright: ignore
    assert main(["fake"]) == code
    text = capsys.readouterr().err
    assert ("Traceback" in text) is traceback
    assert ("please report it" in text) is (code == 1)
    assert ("pip install 'edgemim[train]'" in text) is (code == 4)


def test_a_training_verb_without_torch_says_what_to_install(tmp_path: Path) -> None:
    """A real process in which torch cannot be imported."""
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'timm', 'torchvision', 'safetensors'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from edgemim.cli import main\n"
        "sys.exit(main(['pretrain', '--data', '.']))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 4, run.stderr
    assert run.stderr.count("\n") == 1
    assert "edgemim[train]" in run.stderr


def test_edge_verbs_start_without_torch() -> None:
    """Their modules import only the edge wing; one process for all of them, for importing takes seconds."""
    modules = [f"edgemim.commands.{name}" for name in WITHOUT_TORCH if (COMMANDS / f"{name}.py").is_file()]
    if not modules:
        pytest.skip("no edge verb is there yet")
    program = (
        "import importlib, sys, edgemim.cli\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'timm', 'torchvision', 'safetensors', 'onnx'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_python_m_edgemim_is_the_same_command() -> None:
    run = subprocess.run([sys.executable, "-m", "edgemim", "evaluat"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "did you mean 'evaluate'?" in run.stderr


def test_an_error_is_an_exception_of_the_table() -> None:
    assert issubclass(UserError, EdgemimError)
