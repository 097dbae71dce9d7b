"""The moving average against its definition, step by step, and steps that count for nothing."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NANO  # noqa: F401 (one thread)

from edgemim.training.average import MovingAverage

GOOD, BAD = torch.zeros(()), torch.ones(())


def model_at(value: float) -> torch.nn.Linear:
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, value)
    torch.nn.init.constant_(model.bias, -value)
    return model


def weight_of(average: MovingAverage) -> float:
    assert average.module.bias[0] == -average.module.weight[0, 0]
    return float(average.module.weight.detach()[0, 0])


def test_each_step_moves_it_by_its_share() -> None:
    average, expected = MovingAverage(model_at(4.0), decay=0.9), 4.0
    average.update(model_at(4.0), GOOD)
    for value in (1.0, -3.0, 7.5):
        average.update(model_at(value), GOOD)
        expected = 0.9 * expected + 0.1 * value
        assert weight_of(average) == pytest.approx(expected)


def test_bad_steps_count_for_nothing() -> None:
    average = MovingAverage(model_at(2.0), decay=0.5)
    average.update(model_at(2.0), BAD)  # the very first may be bad, too
    average.update(model_at(6.0), GOOD)
    average.update(model_at(100.0), BAD)
    assert weight_of(average) == pytest.approx(4.0)
    average.update(model_at(0.0), GOOD)
    assert weight_of(average) == pytest.approx(2.0)


def test_its_state_survives_a_file() -> None:
    first, second = (MovingAverage(model_at(1.0), decay=0.75) for _ in range(2))
    for value in (1.0, 5.0, 9.0):
        first.update(model_at(value), GOOD)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for average in (first, second):
        average.update(model_at(-2.0), GOOD)
    assert weight_of(first) == weight_of(second)


def test_the_model_itself_is_untouched() -> None:
    model = model_at(3.0)
    average = MovingAverage(model, decay=0.5)
    average.update(model_at(9.0), GOOD)
    average.update(model_at(1.0), GOOD)
    assert float(model.weight.detach()[0, 0]) == 3.0
    assert average.module is not model


def test_it_stands_in_for_the_weights_and_leaves_them_as_they_were() -> None:
    model = torch.nn.Sequential(model_at(3.0), torch.nn.BatchNorm1d(1))
    average = MovingAverage(model, decay=0.5)
    average.update(torch.nn.Sequential(model_at(9.0), torch.nn.BatchNorm1d(1)), GOOD)
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}

    def interrupted() -> None:
        with average.standing_in(model):
            assert float(model[0].bias.detach()) == -9.0  # pyright: ignore
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
    assert float(average.module[0].bias.detach()) == -9.0  # pyright: ignore
