"""Classification: the loss by hand, mixing that follows the step's seed, and networks by name."""

from __future__ import annotations

import pydantic
import pytest
import torch
import torch.nn.functional as F
from tiny_training import NANO, keys_of, pixels
from torch import Tensor

from edgemim.edge.images import Preprocessing
from edgemim.models.normalization import Normalization
from edgemim.tasks.classification import ClassificationTask, MixingConfig, build_model

LABELS = ("a", "b", "c", "d")
IMAGES, TRUTH = pixels(6), torch.tensor([0, 1, 2, 3, 1, 2])
PREPROCESSING = Preprocessing(image_size=32)
NORMALIZED = Normalization(PREPROCESSING.mean, PREPROCESSING.std).apply(IMAGES)


class Recorder(torch.nn.Module):
    """A linear classifier that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = torch.nn.Linear(3 * 32 * 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().clone()
        return self.head(x.flatten(1))


def task_with(**mixing: float) -> tuple[ClassificationTask, Recorder]:
    model = Recorder()
    task = ClassificationTask(
        model, LABELS, PREPROCESSING, None, architecture={}, mixing=MixingConfig.model_validate(mixing)
    )
    return task.train(), model


def run(task: ClassificationTask, seed: int = 0, count: int = 6) -> Tensor:
    torch.manual_seed(seed)
    return task(IMAGES[:count], keys_of(count), TRUTH[:count]).loss.detach()


def test_the_plain_loss_and_accuracy_by_hand() -> None:
    task, model = task_with(mixup=0)
    output = task(IMAGES, keys_of(6), TRUTH)
    log_p = model(NORMALIZED).log_softmax(1)
    expected = -sum(float(log_p[i, int(label)].detach()) for i, label in enumerate(TRUTH)) / 6
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    right = sum(int(log_p[i].argmax()) == int(label) for i, label in enumerate(TRUTH))
    assert float(output.metrics["train_top1"]) == pytest.approx(right / 6)


def test_smoothing_by_hand() -> None:
    task, model = task_with(mixup=0, smoothing=0.2)
    log_p = model(NORMALIZED).log_softmax(1).detach()
    soft = 0.8 * F.one_hot(TRUTH, 4) + 0.2 / 4
    assert float(run(task)) == pytest.approx(float(-(soft * log_p).sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize("count", [6, 5, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_blends_images_and_labels_by_the_same_share(count: int, smoothing: float) -> None:
    """Each image with another one of the batch; the odd batch's extra image is dropped again."""
    task, model = task_with(mixup=5.0, smoothing=smoothing)
    loss = run(task, seed=3, count=count)
    assert model.seen.shape == (count, 3, 32, 32)
    x, truth = NORMALIZED[:count], TRUTH[:count]
    partner = torch.arange(count + count % 2).flip(0)[:count].clamp(max=count - 1)
    difference = x - x[partner]
    share = (((model.seen - x[partner]) * difference).flatten(1).sum(1) / difference.square().flatten(1).sum(1))[0]
    assert 0.02 < share < 0.98
    torch.testing.assert_close(model.seen, share * x + (1 - share) * x[partner], rtol=1e-3, atol=1e-3)
    one_hot = F.one_hot(truth, 4) * (1 - smoothing) + smoothing / 4
    soft = share * one_hot + (1 - share) * one_hot[partner]
    expected = -(soft * model.head(model.seen.flatten(1)).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-3, atol=1e-4)


def test_cutmix_pastes_a_rectangle_of_the_partner() -> None:
    task, model = task_with(mixup=0, cutmix=1.0)
    run(task, seed=5)
    pasted = (model.seen != NORMALIZED).any(1)
    assert pasted[0].any() and not pasted[0].all()
    rows, columns = pasted[0].nonzero().unbind(1)
    box = torch.zeros_like(pasted[0])
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert torch.equal(model.seen[0][:, box], NORMALIZED.flip(0)[0][:, box])
    assert torch.equal(model.seen[0][:, ~box], NORMALIZED[0][:, ~box])


def test_mixing_follows_the_seed_that_the_loop_sets_for_the_step() -> None:
    task, _ = task_with(mixup=0.8, cutmix=1.0)
    losses = [float(run(task, seed)) for seed in (11, 11, 12, 13)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("wrong", [{"mixup": -0.1}, {"cutmix": -1}, {"smoothing": 1.0}])
def test_shares_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        MixingConfig.model_validate(wrong)


def test_mixing_leaves_global_generators_alone() -> None:
    import random

    import numpy as np

    task, _ = task_with(mixup=0.8)
    random.seed(4)
    np.random.seed(4)
    run(task)
    drawn = random.random(), float(np.random.rand())
    random.seed(4)
    np.random.seed(4)
    assert drawn == (random.random(), float(np.random.rand()))


def test_evaluation_never_mixes() -> None:
    task, model = task_with(mixup=0.8, smoothing=0.1)
    task.eval()
    run(task)
    torch.testing.assert_close(model.seen, NORMALIZED)
    logits = task.predict(IMAGES)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, model(NORMALIZED).detach())


def test_facts_describe_the_task() -> None:
    task, model = task_with()
    facts = task.facts()
    assert facts["kind"] == "classification"
    assert facts["labels"] == list(LABELS)
    assert Preprocessing.model_validate(facts["preprocessing"]) == PREPROCESSING
    assert task.exported is model


def test_networks_by_name() -> None:
    vit = build_model({"vit": NANO.model_dump(mode="json")}, 7)
    assert vit(NORMALIZED).shape == (6, 7)
    assert {"fc_norm.weight", "head.weight"} <= set(vit.state_dict())  # mean-pooled, then a norm of its own
    assert "norm.weight" not in vit.state_dict()
    assert all(p.requires_grad for p in vit.parameters())  # positions are trained too
    assert build_model({"timm": "test_vit"}, 5).num_classes == 5


def test_drop_path_grows_with_depth() -> None:
    rates = [block.drop_path1 for block in build_model({"vit": NANO.model_dump()}, 2, drop_path=0.2).blocks]
    assert isinstance(rates[0], torch.nn.Identity)
    assert rates[-1].drop_prob == pytest.approx(0.2)
