"""The one interface: methods and tasks are both objectives."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NORMALIZATION, nano_encoder

from edgemim.edge.images import Preprocessing
from edgemim.methods.mae import MaeConfig
from edgemim.models.weights import bare_vit
from edgemim.tasks.classification import ClassificationTask
from edgemim.training.objective import Objective, StepOutput


def test_a_method_and_a_task_are_objectives_with_weights_to_hand_on() -> None:
    encoder = nano_encoder()
    method = MaeConfig().build(encoder, NORMALIZATION, None)
    model = bare_vit(encoder.config, num_classes=2)
    task = ClassificationTask(model, ("a", "b"), Preprocessing(image_size=32), None, architecture={})
    for objective, exported in ((method, encoder.vit), (task, model)):
        assert isinstance(objective, Objective)
        assert objective.exported is exported


def test_an_objective_says_what_leaves_training() -> None:
    with pytest.raises(NotImplementedError):
        _ = Objective().exported


def test_metrics_are_not_shared_between_steps() -> None:
    first, second = StepOutput(torch.zeros(())), StepOutput(torch.zeros(()))
    first.metrics["a"] = torch.ones(())
    assert second.metrics == {}
