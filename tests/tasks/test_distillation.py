"""Distillation: the loss by hand, a teacher with its own eyes, and a student whose checkpoint knows nothing of it."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from tiny_training import NANO, pixels  # noqa: E402

from edgemim.edge.images import Preprocessing  # noqa: E402
from edgemim.models.normalization import Normalization  # noqa: E402
from edgemim.models.weights import bare_vit  # noqa: E402
from edgemim.tasks.classification import ClassificationTask, MixingConfig  # noqa: E402
from edgemim.tasks.distillation import ClassTeacher, Distillation, DistillationConfig  # noqa: E402

LABELS = ("a", "b", "c", "d")
OTHER_EYES = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


class Brightness(torch.nn.Module):
    """Logits from the mean of each channel: what a teacher sees can be worked out by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        means = x.mean((2, 3))
        return torch.cat([means, means.sum(1, keepdim=True)], dim=1)


def teacher_of(image_size: int = 32, order: tuple[int, ...] | None = None) -> ClassTeacher:
    return ClassTeacher(Brightness(), OTHER_EYES, image_size, "brightness", order)


def student(distillation: Distillation | None, two_heads: bool = True, **mixing: float) -> ClassificationTask:
    torch.manual_seed(0)
    model = bare_vit(NANO, num_classes=4, distilled=two_heads)
    settings = MixingConfig.model_validate({"mixup": 0.0, **mixing})
    return ClassificationTask(
        model, LABELS, Preprocessing(image_size=32), None, architecture={}, mixing=settings, distillation=distillation
    )


def by_hand(told: list[list[float]], answers: list[list[float]], heat: float) -> float:
    """heat² times the mean over images of the divergence of the student's probabilities from the teacher's."""
    total = 0.0
    for ours, theirs in zip(told, answers, strict=True):
        p, q = ([math.exp(x / heat) for x in row] for row in (theirs, ours))
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return heat**2 * total / len(told)


def test_losses_by_hand() -> None:
    told, answers = [[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], [[2.0, 0.1, 0.0], [-1.0, 4.0, 1.0]]
    soft = Distillation(DistillationConfig(teacher="x", kind="soft", temperature=2.5), teacher_of())
    assert float(soft.loss(torch.tensor(told), torch.tensor(answers))) == pytest.approx(by_hand(told, answers, 2.5))
    hard = Distillation(DistillationConfig(teacher="x"), teacher_of())
    rows = [math.log(sum(map(math.exp, row))) for row in told]
    expected = (rows[0] - told[0][0] + rows[1] - told[1][1]) / 2
    assert float(hard.loss(torch.tensor(told), torch.tensor(answers))) == pytest.approx(expected)


def test_a_step_is_half_labels_half_teacher_each_through_its_head() -> None:
    distillation = Distillation(DistillationConfig(teacher="x"), teacher_of())
    task, images, labels = student(distillation).train(), pixels(6), torch.tensor([0, 1, 2, 3, 0, 1])
    output = task(images, torch.zeros(6), labels)
    first, second = task.model(task.normalization.apply(images))
    answers = Brightness()(OTHER_EYES.apply(images)).argmax(1)
    ce = torch.nn.functional.cross_entropy
    torch.testing.assert_close(output.loss, 0.5 * ce(first, labels) + 0.5 * ce(second, answers))
    assert float(output.metrics["teacher_agreement"]) == pytest.approx(
        float((second.argmax(1) == answers).float().mean())
    )
    alone = student(
        Distillation(DistillationConfig(teacher="x", weight=0.25, through="head"), teacher_of()), two_heads=False
    )
    output = alone.train()(images, torch.zeros(6), labels)
    logits = alone.model(alone.normalization.apply(images))
    torch.testing.assert_close(output.loss, 0.75 * ce(logits, labels) + 0.25 * ce(logits, answers))


def test_the_teacher_sees_the_students_mixture_with_its_own_eyes() -> None:
    teacher = teacher_of()
    task = student(Distillation(DistillationConfig(teacher="x"), teacher), mixup=0.5).train()
    images, labels = pixels(4), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(5)
    task(images, torch.zeros(4), labels)
    seen = OTHER_EYES.undo(teacher.model.seen)  # pyright: ignore
    plain = images.float() / 255
    # Each image is blended with its mirror in the batch by one share, the same for all.
    share = ((seen - plain.flip(0)) / (plain - plain.flip(0))).nanmedian()
    assert 0 < float(share) < 1
    torch.testing.assert_close(seen, share * plain + (1 - share) * plain.flip(0), rtol=0, atol=1e-4)


def test_another_size_and_another_order_of_classes() -> None:
    images = pixels(3).float() / 255
    teacher = teacher_of(image_size=20, order=(3, 0, 1, 2))
    logits = teacher(images)
    assert teacher.model.seen.shape == (3, 3, 20, 20)  # pyright: ignore
    straight = teacher_of(image_size=20)(images)
    assert torch.equal(logits, straight[:, [3, 0, 1, 2]])
    torch.testing.assert_close(straight, teacher_of()(images), rtol=0.05, atol=0.02)  # the mean hardly changes


def test_it_is_frozen_and_no_part_of_the_student() -> None:
    frozen = ClassTeacher(bare_vit(NANO, num_classes=4, drop_path=0.5).train(), OTHER_EYES, 32, "random")
    task = student(Distillation(DistillationConfig(teacher="x"), frozen)).train()
    assert not frozen.model.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert task.state_dict().keys() == student(None).state_dict().keys()
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    task(pixels(4), torch.zeros(4), torch.tensor([0, 1, 2, 3])).loss.backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(torch.equal(before[key], value) for key, value in frozen.state_dict().items())
    assert all(p.grad is not None for p in task.model.parameters() if p.requires_grad)


def test_settings_without_a_teacher_are_refused() -> None:
    with pytest.raises(ValueError, match="'kind' has no effect without a teacher"):
        DistillationConfig(kind="soft")
    assert DistillationConfig().teacher is None
