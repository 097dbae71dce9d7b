"""What a user may say about INT8, and what is meant where nothing is said."""

from __future__ import annotations

import pytest

from edgemim.errors import MissingLibrary
from edgemim.export import int8_config
from edgemim.export.int8_config import Int8Config, limits_of, pick_isa, pick_targets
from edgemim.tasks.comparison import Limits


def test_limits_are_the_tasks_unless_asked(task) -> None:
    assert limits_of(task, Int8Config()) == Limits(max_drop=1.0, min_agreement=99.0, min_cosine=0.999)
    asked = Int8Config(max_drop=0.0, min_cosine=0.99)
    assert limits_of(task, asked) == Limits(max_drop=0.0, min_agreement=99.0, min_cosine=0.99)


def test_isa_follows_the_cpu_unless_asked() -> None:
    assert pick_isa("auto", ["avx2", "avx512_vnni"]) == "vnni"
    assert pick_isa("auto", ["avx2", "avx512f"]) == "portable"
    assert pick_isa("auto", ["asimddp"]) == "vnni"  # ARM's dot product sums in 32 bits too
    assert pick_isa("auto", []) == "portable"
    assert pick_isa("portable", ["avx512_vnni"]) == "portable"
    assert pick_isa("vnni", []) == "vnni"


def test_targets_follow_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_config, "missing_packages", lambda quantize: [])
    assert pick_targets(()) == ("onnx-int8", "openvino-int8")
    monkeypatch.setattr(int8_config, "missing_packages", lambda quantize: ["nncf"])
    assert pick_targets(()) == ("onnx-int8",)
    assert pick_targets(("onnx-int8", "onnx-int8")) == ("onnx-int8",)

    def absent(quantize: bool) -> None:
        raise MissingLibrary("pip install 'edgemim[openvino]'")

    monkeypatch.setattr(int8_config, "require_packages", absent)
    with pytest.raises(MissingLibrary):
        pick_targets(("openvino-int8",))
