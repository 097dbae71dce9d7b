"""A frozen masked autoencoder from a run: the same prediction as the model that was saved, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_training import NORMALIZATION, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.mae import MaeConfig
from edgemim.methods.reconstruction import open_reconstruction
from edgemim.models.sizes import VitConfig
from edgemim.models.weights import save_model
from edgemim.training.checkpoint import Checkpoint, CheckpointFolder

MAE = VitConfig(width=16, depth=2, heads=2, patch_size=8, image_size=32)


def save_run(folder: Path, method: MaeConfig) -> MaskedImageModel:
    """A run of MAE as pre-training leaves it."""
    model = method.build(nano_encoder(MAE, seed=5), NORMALIZATION, None)
    preprocessing = {"mean": NORMALIZATION.mean, "std": NORMALIZATION.std}
    description = {"encoder": MAE.model_dump(), "method": method.model_dump(mode="json")}
    facts = {"kind": "encoder", **description, "preprocessing": preprocessing}
    save_model(folder / "model", model.encoder.vit.state_dict(), facts)
    CheckpointFolder(folder / "checkpoints").save(Checkpoint(3, {"model": model.state_dict()}, {}))
    return model


def test_it_predicts_as_the_saved_model_and_stays_frozen(tmp_path: Path) -> None:
    model = save_run(tmp_path, MaeConfig())
    opened = open_reconstruction(tmp_path, MAE)
    images, mask = pixels(2) / 255, mask_of(2)
    x = NORMALIZATION.normalize(images)
    expected = model.branches[0].decoder(model.encode(x, mask), mask)
    torch.testing.assert_close(opened(images, mask), expected.detach(), rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in opened.parameters())
    assert not opened.train().training


def test_runs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_run(tmp_path / "raw", MaeConfig(norm_pix_loss=False))
    with pytest.raises(UserError, match="norm_pix_loss"):
        open_reconstruction(tmp_path / "raw", MAE)
    save_run(tmp_path / "other", MaeConfig())
    with pytest.raises(UserError, match="same patches"):
        open_reconstruction(tmp_path / "other", MAE.model_copy(update={"patch_size": 16}))
    path = tmp_path / "other" / "model" / "model.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "method": {"name": "mff"}}))
    with pytest.raises(UserError, match="no run of --method mae"):
        open_reconstruction(tmp_path / "other", MAE)
    path.write_text(json.dumps(facts))
    (checkpoint,) = (tmp_path / "other" / "checkpoints").glob("step-*")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match="cannot be read"):
        open_reconstruction(tmp_path / "other", MAE)
    assert checkpoint.is_dir()  # a run that is only read is left as it is
