"""Batch norm's running statistics after a step that counts for nothing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgemim.training.statistics import RunningStatistics  # noqa: E402


@pytest.mark.parametrize("bad", [0.0, 1.0])
def test_a_bad_step_is_taken_back_a_good_one_stays(bad: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.LayerNorm(2))
    statistics = RunningStatistics(model)
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    assert len(before) == 2
    statistics.remember()
    model(torch.full((2, 3, 2, 2), torch.nan if bad else 1.0))
    statistics.take_back(torch.tensor(bad))
    after = model.state_dict()
    for key, value in before.items():
        assert torch.equal(after[key], value) is bool(bad), key
        assert torch.isfinite(after[key]).all()
