"""Fake quantisation: the integers are right, gradients arrive, and NNCF's places are those of the INT8 file."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nncf", reason="pip install 'edgemim[openvino]'")

from edgemim.export.fake_quantization import LearnedRange, fake_quantized, plain_state, ranges  # noqa: E402


def rounded(x: np.ndarray, step: np.ndarray, zero: np.ndarray, low: int, high: int) -> np.ndarray:
    """The definition, in numpy."""
    return (np.clip(np.round(x / step) + zero, low, high) - zero) * step


def test_one_range_for_all() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3
    place = LearnedRange(0, 255, torch.tensor([0.013]), torch.tensor([120.0]))
    expected = rounded(x.numpy(), np.float32(0.013), np.float32(120), 0, 255)
    np.testing.assert_allclose(place(x).detach().numpy(), expected, atol=1e-5)
    assert np.abs(expected - x.numpy()).max() > 0.5  # some lie outside


def test_a_range_for_each_channel() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    step, zero = torch.tensor([0.01, 0.02, 0.05, 0.1]), torch.zeros(4)
    place = LearnedRange(-64, 63, step, zero, axis=0)
    expected = rounded(x.numpy(), step.numpy()[:, None], 0 * step.numpy()[:, None], -64, 63)
    np.testing.assert_allclose(place(x).detach().numpy(), expected, atol=1e-5)


def test_gradients_pass_inside_and_widen_the_range_for_what_is_outside() -> None:
    x = torch.tensor([0.5, 30.0], requires_grad=True)
    place = LearnedRange(-128, 127, torch.tensor([0.1]), torch.tensor([0.0]))
    (place(x) - torch.tensor([0.0, 30.0])).square().sum().backward()
    assert x.grad is not None and x.grad[0] == pytest.approx(1.0, abs=1e-4)  # 2 (0.5 - 0)
    assert x.grad[1] == 0  # it was cut off
    assert place.log_step.grad is not None and place.log_step.grad.item() < 0  # a step downhill widens


@pytest.mark.parametrize("full_range", [True, False])
def test_where_a_model_is_quantised(task, full_range: bool) -> None:
    images = np.concatenate(list(task.calibration_batches(16)))
    module = task.export_module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    student = fake_quantized(module, [image[None] for image in images], full_range=full_range)
    names = [name for name, part in student.named_modules() if isinstance(part, LearnedRange)]
    assert any("attn/qkv/linear" in name for name in names)
    assert any("mlp/fc2/linear" in name for name in names)
    assert not any("patch_embed" in name for name in names)
    weights = [place for place in ranges(student) if place.axis is not None]
    assert {(place.low, place.high) for place in weights} == {(-128, 127) if full_range else (-64, 63)}
    with torch.no_grad():
        a, b = module(torch.from_numpy(images)), student(torch.from_numpy(images))
    assert 0 < (a - b).abs().max() < 0.1 * a.abs().max()
    for name, tensor in plain_state(student, module).items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(module.state_dict()[name], before[name])
