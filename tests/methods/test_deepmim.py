"""DeepMIM's taps, targets and weights; the feature variant is compared with the published code in tests/golden."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import NORMALIZATION, GridTeacher, keys_of, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.deepmim import DeepMimConfig, deep_taps
from edgemim.methods.mae import MaeConfig
from edgemim.methods.reconstruction import open_reconstruction
from edgemim.methods.targets import PixelTarget
from edgemim.models.sizes import VitConfig
from edgemim.models.weights import save_model
from edgemim.teachers import CheckpointTeacher, TimmTeacher
from edgemim.training.checkpoint import Checkpoint, CheckpointFolder

SIX = VitConfig(width=24, depth=6, heads=3, patch_size=8, image_size=32)
MAE = VitConfig(width=16, depth=2, heads=2, patch_size=8, image_size=32)


@pytest.fixture(scope="module")
def mae() -> MaskedImageModel:
    return MaeConfig().build(nano_encoder(MAE, seed=5), NORMALIZATION, None)


@pytest.fixture(scope="module")
def run(mae: MaskedImageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAE as pre-training leaves it."""
    folder = tmp_path_factory.mktemp("mae")
    preprocessing = {"mean": NORMALIZATION.mean, "std": NORMALIZATION.std}
    method = MaeConfig().model_dump(mode="json")
    facts = {"kind": "encoder", "encoder": MAE.model_dump(), "method": method, "preprocessing": preprocessing}
    save_model(folder / "model", mae.encoder.vit.state_dict(), facts)
    CheckpointFolder(folder / "checkpoints").save(Checkpoint(3, {"model": mae.state_dict()}, {}))
    return folder


@pytest.mark.parametrize(
    ("depth", "taps"), [(12, (6, 8, 10, 12)), (24, (12, 16, 20, 24)), (6, (3, 4, 5, 6)), (2, (1, 2)), (1, (1,))]
)
def test_taps_as_published(depth: int, taps: tuple[int, ...]) -> None:
    assert deep_taps(depth) == taps


def test_weight_on_the_last_block_alone_is_mae() -> None:
    deep = DeepMimConfig(weights=(0.0, 0.0, 0.0, 1.0)).build(nano_encoder(SIX), NORMALIZATION, None)
    plain = MaeConfig().build(nano_encoder(SIX), NORMALIZATION, None)
    state = deep.state_dict()
    plain.load_state_dict({key: state[key.replace(".pixel.", ".block_6.")] for key in plain.state_dict()})
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    one, other = deep.loss(x, mask).loss, plain.loss(x, mask).loss
    assert torch.equal(one, other)
    one.backward()
    other.backward()
    for ours, theirs in zip(deep.encoder.parameters(), plain.encoder.parameters(), strict=True):
        assert ours.grad is theirs.grad is None or torch.allclose(ours.grad, theirs.grad, atol=1e-6)  # pyright: ignore


def test_each_block_learns_from_its_own_and_later_taps() -> None:
    model = DeepMimConfig().build(nano_encoder(SIX), NORMALIZATION, None)
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    shallow = model.branches[-1]
    assert shallow.name == "block_3"
    shallow.decoder(model.encode(x, mask), mask).square().mean().backward()
    reached = {name for name, p in model.encoder.vit.named_parameters() if p.grad is not None}
    assert {int(name.split(".")[1]) for name in reached if name.startswith("blocks.")} == {0, 1, 2}
    assert "norm.weight" not in reached


def test_hybrid_blends_towards_pixels(mae: MaskedImageModel, run: Path) -> None:
    method = DeepMimConfig(target="hybrid")
    teacher = method.build_teacher(CheckpointTeacher(path=run), SIX)
    model = method.build(nano_encoder(SIX), NORMALIZATION, teacher)
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    with torch.no_grad():
        filled = mae.branches[0].decoder(mae.encode(x, mask), mask)
    true = PixelTarget(8)(x, mask)
    for branch, share in zip(model.branches, (1.0, 2 / 3, 1 / 3, 0.0), strict=True):
        torch.testing.assert_close(branch.target(x, mask), share * true + (1 - share) * filled, rtol=1e-4, atol=1e-4)
    assert all(not name.startswith("teacher") for name, _ in model.named_parameters())
    assert model.reconstruct(pixels(2), keys_of(2)) is not None
    model.train().loss(x, mask).loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(part.training for part in teacher.modules())


def test_features_are_asked_for_once_a_step_and_taken_as_they_are() -> None:
    teacher = GridTeacher(8, 4)
    model = DeepMimConfig(target="feature").build(nano_encoder(SIX), NORMALIZATION, teacher)
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    model.loss(x, mask).loss.backward()
    assert teacher.calls == 1
    torch.testing.assert_close(model.branches[0].target(x, mask), teacher(NORMALIZATION.undo(x)))
    assert {branch.loss for branch in model.branches} == {"cosine"}


def test_what_does_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    encoder = nano_encoder(SIX)
    for target in ("hybrid", "feature"):
        with pytest.raises(UserError, match="needs a teacher"):
            DeepMimConfig(target=target).build(encoder, NORMALIZATION, None)
    with pytest.raises(UserError, match="rise"):
        DeepMimConfig(taps=(4, 2)).build(encoder, NORMALIZATION, None)
    with pytest.raises(UserError, match="'weights' has 2"):
        DeepMimConfig(weights=(1.0, 1.0)).build(encoder, NORMALIZATION, None)
    with pytest.raises(UserError, match="run of MAE"):
        DeepMimConfig(target="hybrid").build_teacher(TimmTeacher(), SIX)
    with pytest.raises(UserError, match="same patches"):
        open_reconstruction(run, SIX.model_copy(update={"patch_size": 16}))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text((run / "model" / "model.json").read_text())
    with pytest.raises(UserError, match="no checkpoint"):
        open_reconstruction(tmp_path, SIX)
