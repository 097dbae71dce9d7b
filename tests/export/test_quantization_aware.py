"""Fine-tuning for INT8: what is learnt, the same weights for the same seed, and a run that is stopped goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nncf", reason="pip install 'edgemim[openvino]'")

from edgemim.errors import SavedOnSignal  # noqa: E402
from edgemim.export.quantization_aware import AwareConfig, QuantizationAware, class_divergence, tune  # noqa: E402
from edgemim.training.loop import Trainer  # noqa: E402

CONFIG = AwareConfig(epochs=0.8, device="cpu", workers=0)


@pytest.fixture(scope="module")
def images(task) -> np.ndarray:
    return np.concatenate(list(task.calibration_batches(8)))


def weights(tuned) -> dict:
    return {name: tensor.clone() for name, tensor in tuned.module.state_dict().items()}


def test_the_divergence_is_kullback_and_leiblers() -> None:
    generator = torch.Generator().manual_seed(0)
    found, expected = (torch.randn(3, 5, 2, generator=generator) for _ in range(2))
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum(1, keepdims=True) for x in (expected, found))
    assert class_divergence(found, expected).item() == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert class_divergence(expected, expected).item() == 0


def test_the_same_seed_gives_the_same_weights_and_the_task_keeps_its_own(task, images, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    options = {"calibration": images, "full_range": True}
    first, again = (tune(task, CONFIG, tmp_path / name, **options) for name in "ab")
    other = tune(task, CONFIG.model_copy(update={"seed": 1}), tmp_path / "c", **options)
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(first).items())
    assert not all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(first).items())
    assert first.record["steps"] == 4
    assert first.record["last_loss"] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    assert list(tmp_path.iterdir()) == []  # checkpoints are gone


def test_a_stopped_run_goes_on_to_the_same_weights(task, images, tmp_path: Path, monkeypatch) -> None:
    options = {"calibration": images, "full_range": True}
    whole = tune(task, CONFIG, tmp_path / "whole", **options)
    step, seen = Trainer.step, []

    def stopping(self, model, batches, number, meter) -> None:
        step(self, model, batches, number, meter)
        seen.append(number)
        if number == 1 and len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(SavedOnSignal, match="the same command goes on"):
        tune(task, CONFIG, tmp_path / "stopped", **options)
    assert seen == [0, 1]
    rest = tune(task, CONFIG, tmp_path / "stopped", **options)
    assert seen == [0, 1, 2, 3]
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(rest).items())


def test_other_settings_start_anew(task, images, tmp_path: Path) -> None:
    (tmp_path / "aware" / "0123456789abcdef").mkdir(parents=True)
    tuned = tune(task, CONFIG, tmp_path / "aware", calibration=images, full_range=True)
    assert tuned.record["steps"] == 4
    assert not (tmp_path / "aware").exists()


def test_the_teacher_is_no_part_of_what_is_saved(task) -> None:
    import copy

    objective = QuantizationAware(copy.deepcopy(task.model), copy.deepcopy(task.model), task.normalization)
    assert {name.partition(".")[0] for name in objective.state_dict()} == {"student"}
    assert not objective.train().student.training
