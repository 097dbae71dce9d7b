"""Weights in and out: timm's names both ways, a full report of keys, and no pickle that runs."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_training import NANO, NORMALIZATION, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.models.encoder import Encoder
from edgemim.models.sizes import VitConfig
from edgemim.models.weights import (
    from_timm,
    load_encoder,
    load_weights,
    read_facts,
    read_tensors,
    save_model,
    to_timm,
)


def images_of(count: int, size: int = 32) -> torch.Tensor:
    return NORMALIZATION.apply(pixels(count, size))


def test_to_timm_and_back_keeps_the_features() -> None:
    encoder = nano_encoder().eval()
    x = images_of(2)
    model = to_timm(encoder, num_classes=7).eval()
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model.forward_features(x), encoder(x).last, rtol=1e-5, atol=1e-6)
    back = from_timm(model).eval()
    assert back.config == encoder.config
    for key, value in encoder.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


def test_a_model_file_loads_into_timms_own_vit_tiny(tmp_path: Path) -> None:
    """The one documented call, with no renaming."""
    encoder = nano_encoder(VitConfig()).eval()
    save_model(tmp_path / "model", encoder.vit.state_dict(), {"kind": "encoder", "encoder": VitConfig().model_dump()})
    model = timm.create_model(
        "vit_tiny_patch16_224",
        num_heads=12,
        num_classes=0,
        checkpoint_path=str(tmp_path / "model" / "model.safetensors"),
    ).eval()
    x = images_of(1, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x), encoder(x).last, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(load_encoder(tmp_path)(x).last, encoder(x).last)


def test_timms_vit_tiny_becomes_an_encoder() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    encoder = from_timm(model).eval()
    assert encoder.config == VitConfig(heads=3)
    x = images_of(1, 224)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).last, model.forward_features(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"reg_tokens": 2}, "reg_token"),
        ({"class_token": False, "global_pool": "avg"}, "pos_embed|cls_token"),
        ({"init_values": 0.1}, "ls1"),
        ({"norm_layer": torch.nn.LayerNorm}, "norm"),
        ({"act_layer": torch.nn.ReLU}, "activation"),
        ({"qkv_bias": False}, "qkv.bias"),
    ],
)
def test_variants_that_the_encoder_does_not_cover_are_refused(options: dict, word: str) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, **options)
    with pytest.raises(UserError, match=word):
        from_timm(model)


def test_blocks_of_another_kind_are_refused() -> None:
    from timm.models.vision_transformer import ResPostBlock

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    with pytest.raises(UserError, match="ResPostBlock"):
        from_timm(timm.create_model("vit_tiny_patch16_224", block_fn=ResPostBlock, **sizes))


def test_every_key_that_does_not_fit_is_named() -> None:
    encoder = nano_encoder()
    weights = dict(encoder.vit.state_dict())
    weights["extra.weight"] = weights.pop("norm.weight")
    weights["norm.bias"] = torch.zeros(5)
    with pytest.raises(UserError) as error:
        load_weights(encoder.vit, weights)
    for part in ("extra.weight is unknown", "norm.bias has shape (5,)", "(24,)", "norm.weight is missing"):
        assert part in str(error.value)


def test_allowed_leftovers_are_reported_and_nothing_else_changes() -> None:
    encoder, other = nano_encoder(), nano_encoder(seed=1)
    own = {key: value.clone() for key, value in encoder.vit.state_dict().items()}
    weights = {k: v for k, v in other.vit.state_dict().items() if not k.startswith("norm.")}
    report = load_weights(
        encoder.vit, {**weights, "head.weight": torch.zeros(3)}, may_drop=("head.",), may_miss=("norm.",)
    )
    assert report.dropped == ("head.weight",)
    assert report.new == ("norm.weight", "norm.bias")
    assert set(report.used) == set(weights)
    assert "dropped: head.weight" in str(report)
    after = encoder.vit.state_dict()
    assert torch.equal(after["norm.weight"], own["norm.weight"])
    assert torch.equal(after["cls_token"], other.vit.state_dict()["cls_token"])


class Evil:
    """Unpickling it would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    content = {"model": {"w": Evil(trace)}}
    torch.save(content, tmp_path / "evil.pth")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("evil.pth", "evil.pt"):
        with pytest.raises(UserError, match="refused"):
            read_tensors(tmp_path / name)
    assert not trace.exists()


def test_a_tensor_of_another_shape_is_named_once() -> None:
    model = torch.nn.Linear(3, 2)
    weights = {"weight": torch.zeros(4, 3), "bias": torch.zeros(2)}
    with pytest.raises(UserError, match=r"weight has shape \(4, 3\), the model wants \(2, 3\); check") as caught:
        load_weights(model, weights)
    assert "missing" not in str(caught.value)
    with pytest.raises(UserError, match="weight is missing"):
        load_weights(model, weights, may_drop=("weight",))


@pytest.mark.filterwarnings("error")
def test_a_damaged_file_is_told_from_a_refused_one(tmp_path: Path) -> None:
    """Without torch's own sentences, which advise reading the file as code."""
    torch.save({"model": {"w": torch.ones(500)}}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-300])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "new.pth").write_bytes(pickle.dumps({"model": {"w": Evil(tmp_path / "x")}}, protocol=4))
    for name, words in (("cut", "damaged or cut short"), ("text", "no file that torch wrote"), ("new", "torch wrote")):
        with pytest.raises(UserError, match=words) as caught:
            read_tensors(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(caught.value)
        assert str(caught.value).count("\n") == 0


def test_the_prefix_of_a_parallel_wrapper_is_taken_off_in_every_format(tmp_path: Path) -> None:
    weights = {"module.w": torch.ones(3)}
    torch.save(weights, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    assert [list(read_tensors(tmp_path / name)) for name in ("w.pth", "w.safetensors")] == [["w"], ["w"]]


@pytest.mark.parametrize("wrap", ["model", "state_dict", "model_state_dict", None])
def test_plain_tensors_are_found_in_a_checkpoint(tmp_path: Path, wrap: str | None) -> None:
    tensors = {"module.a": torch.ones(2), "b": torch.zeros(3)}
    content = tensors if wrap is None else {wrap: tensors, "epoch": 3}
    torch.save(content, tmp_path / "x.pth")
    found = read_tensors(tmp_path / "x.pth")
    assert set(found) == {"a", "b"}
    assert torch.equal(found["a"], torch.ones(2))


def test_what_training_scripts_store_beside_the_weights_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments, a configuration of a class that is not installed here, a numpy score."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # pyright: ignore
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    beside = {"args": argparse.Namespace(lr=1e-3, name="x"), "config": module.CfgNode(depth=module.CfgNode(n=3))}
    torch.save({"model": {"a": torch.ones(2)}, **beside, "best": np.float64(83.6)}, tmp_path / "x.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    assert torch.equal(read_tensors(tmp_path / "x.pth")["a"], torch.ones(2))


def test_dinos_teacher_is_the_network_that_is_published(tmp_path: Path) -> None:
    parts = {"student": {"module.a": torch.zeros(2)}, "teacher": {"a": torch.ones(2)}, "epoch": 99}
    torch.save(parts, tmp_path / "x.pth")
    assert torch.equal(read_tensors(tmp_path / "x.pth")["a"], torch.ones(2))


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": {"epoch": 3}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth"):
        read_tensors(tmp_path / "x.pth")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-3])
    with pytest.raises(UserError, match=r"a\.safetensors"):
        read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"no weights file at .*absent\.pth"):
        read_tensors(tmp_path / "absent.pth")


def saved(run: Path, **facts: object) -> Path:
    """A run folder with a small encoder and the given facts."""
    save_model(run / "model", nano_encoder().vit.state_dict(), facts)
    return run


def test_model_folder_round_trip(tmp_path: Path) -> None:
    encoder = nano_encoder()
    loaded = load_encoder(saved(tmp_path, kind="encoder", encoder=NANO.model_dump(mode="json"), note="x"))
    assert isinstance(loaded, Encoder)
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in encoder.state_dict().items())
    assert read_facts(tmp_path)["note"] == "x"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"kind": "classification"}, "not a pre-trained encoder"),
        ({"kind": "encoder"}, "does not describe"),
        ({"kind": "encoder", "encoder": {"width": 7}}, "does not describe"),
        ({"kind": "encoder", "encoder": {"no_such_key": 7}}, "does not describe"),
        ({"kind": "encoder", "encoder": {**NANO.model_dump(), "depth": 3}}, "do not fit"),
        ({}, "does not describe"),
    ],
)
def test_a_run_that_holds_no_encoder_is_refused(tmp_path: Path, facts: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        load_encoder(saved(tmp_path, **facts))


def test_an_unfinished_or_damaged_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished model"):
        load_encoder(tmp_path)
    saved(tmp_path, kind="encoder")
    (tmp_path / "model" / "model.json").write_text("{half")
    with pytest.raises(UserError, match=r"model\.json cannot be read"):
        load_encoder(tmp_path)
    (tmp_path / "model" / "model.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="does not describe"):
        load_encoder(tmp_path)


def test_a_disk_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"model\.safetensors .*bytes.*No space left"):
        saved(tmp_path, kind="encoder")
    assert list((tmp_path / "model").iterdir()) == []
