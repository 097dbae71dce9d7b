"""The public face: every name is there, and naming the package loads no heavy library."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

import edgemim


@pytest.mark.parametrize("name", edgemim.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    home = edgemim._PUBLIC[name]
    if find_spec(home) is None:
        pytest.skip(f"{home} is not there yet")
    if not home.startswith("edgemim.edge"):
        pytest.importorskip("torch")
    value = getattr(edgemim, name)
    assert callable(value)
    assert value.__doc__


def test_a_verb_has_its_function_and_its_config() -> None:
    from edgemim.cli import VERBS

    for verb in VERBS.values():
        assert edgemim._PUBLIC[verb.function] == f"edgemim.commands.{verb.module}"
        assert edgemim._PUBLIC[verb.config] == f"edgemim.commands.{verb.module}"


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_verb"):
        _ = edgemim.no_such_verb
    assert dir(edgemim) == edgemim.__all__ == sorted(edgemim.__all__)


def test_the_package_and_its_edge_import_without_torch() -> None:
    program = (
        "import sys, edgemim\n"
        "assert not {'torch', 'timm', 'numpy', 'onnxruntime'} & set(sys.modules), 'import edgemim is heavy'\n"
        "edgemim.Artifact, edgemim.open_session\n"
        "import edgemim.cli, edgemim.config, edgemim.run\n"
        "assert not {'torch', 'timm', 'torchvision', 'safetensors', 'onnx'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
