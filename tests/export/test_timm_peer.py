"""timm's networks as artifacts: their own answers, branches merged, written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from tiny_artifact import tiny_artifact

from edgemim.edge.runtime import open_session
from edgemim.errors import ModelRefused, UserError
from edgemim.export.timm_peer import build_peer, check_names, peer_artifact


def test_the_artifact_answers_as_the_network(tmp_path: Path) -> None:
    artifact = peer_artifact("test_efficientnet", tmp_path / "peer")
    manifest = artifact.manifest
    assert (manifest.name, manifest.task, manifest.source["timm"]) == (
        "test_efficientnet",
        "classification",
        "test_efficientnet",
    )
    assert manifest.parameters == sum(p.numel() for p in timm.create_model("test_efficientnet").parameters())
    assert manifest.gflop["onnx-fp32"] > 0
    images = np.random.default_rng(0).standard_normal((3, *manifest.input_shape[1:])).astype(np.float32)
    with torch.inference_mode():
        expected = build_peer("test_efficientnet")(torch.from_numpy(images)).numpy()
    found = open_session(artifact, threads=1).run({"images": images})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    before = artifact.file().stat().st_mtime_ns
    assert peer_artifact("test_efficientnet", tmp_path / "peer").file().stat().st_mtime_ns == before


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no artifact"):
        peer_artifact("test_efficientnet", tmp_path)
    own = tiny_artifact(tmp_path / "own", source={"run": "fine"})
    with pytest.raises(UserError, match="holds another artifact"):
        peer_artifact("test_efficientnet", own.folder)
    assert (tmp_path / "thesis.tex").is_file() and own.file().is_file()


def test_branches_are_merged() -> None:
    merged, plain = build_peer("fastvit_t8"), timm.create_model("fastvit_t8")
    assert len(list(merged.modules())) < len(list(plain.modules()))


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    check_names(["fastvit_t8", "deit_tiny_patch16_224.fb_in1k"])
    with pytest.raises(UserError, match="no network 'mobilenet_v3' "):
        check_names(["mobilenet_v3"])


def test_a_network_that_cannot_be_built_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("needs flash_attn")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ModelRefused, match="cannot build x: needs flash_attn"):
        peer_artifact("x", tmp_path / "x")
