"""AdamW and SGD over timm's groups: who decays, who learns how fast, and a state that survives a file."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_training import NANO, nano_encoder

from edgemim.models.weights import bare_vit
from edgemim.training.optim import (
    build_adamw,
    build_sgd,
    gradient_norm,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


def settings_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module, key: str) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3))


def test_vectors_do_not_decay_and_frozen_tensors_are_left_out() -> None:
    encoder = nano_encoder()
    decay = settings_of(build_adamw(encoder, weight_decay=0.05, betas=(0.9, 0.95)), encoder, "weight_decay")
    assert "vit.pos_embed" not in decay
    for name, p in encoder.named_parameters():
        if p.requires_grad:
            assert decay[name] == (0.0 if p.ndim <= 1 or name.endswith(".bias") else 0.05), name


def test_vectors_decay_where_asked_for() -> None:
    encoder = nano_encoder()
    optimizer = build_adamw(
        encoder, weight_decay=0.1, betas=(0.9, 0.999), decay_vectors=True, no_decay=["vit.cls_token"]
    )
    decay = settings_of(optimizer, encoder, "weight_decay")
    assert decay.pop("vit.cls_token") == 0.0
    assert decay == {n: 0.1 for n, p in encoder.named_parameters() if p.requires_grad and n != "vit.cls_token"}
    assert all(group["lr_scale"] == 1.0 for group in optimizer.param_groups)


def test_named_tensors_do_not_decay() -> None:
    model = small_model()
    decay = settings_of(
        build_adamw(model, weight_decay=0.1, betas=(0.9, 0.95), no_decay=["2.weight"]), model, "weight_decay"
    )
    assert (decay["0.weight"], decay["2.weight"]) == (0.1, 0.0)


def test_layers_learn_slower_the_deeper_they_lie() -> None:
    model = bare_vit(NANO, num_classes=5)
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=0.5)
    set_learning_rate(optimizer, 8.0)
    rate = settings_of(optimizer, model, "lr")
    assert rate["patch_embed.proj.weight"] == rate["cls_token"] == rate["pos_embed"] == 1.0
    assert rate["blocks.0.mlp.fc1.weight"] == 2.0
    assert rate["blocks.1.norm1.bias"] == 4.0
    assert rate["fc_norm.weight"] == rate["head.weight"] == rate["head.bias"] == 8.0
    assert len(rate) == sum(1 for _ in model.parameters())


def test_without_layer_decay_all_rates_are_equal() -> None:
    model = small_model()
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    set_learning_rate(optimizer, 0.3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}


def test_gradient_norm_is_that_of_all_entries() -> None:
    model = small_model()
    model(torch.randn(2, 5)).square().sum().backward()
    model[0].bias.grad = None
    total = sum(float(v) ** 2 for p in model.parameters() if p.grad is not None for v in p.grad.flatten())
    assert float(gradient_norm(list(model.parameters()))) == pytest.approx(math.sqrt(total), rel=1e-5)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_saved_state_takes_the_same_next_step() -> None:
    model = small_model()
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    set_learning_rate(optimizer, 1e-2)
    for seed in range(3):
        step(model, optimizer, seed)
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer, model).items()}
    assert set(saved) == {
        f"{name}|{moment}" for name, _ in model.named_parameters() for moment in ("step", "exp_avg", "exp_avg_sq")
    }
    other = small_model()
    other.load_state_dict(model.state_dict())
    fresh = build_adamw(other, weight_decay=0.05, betas=(0.9, 0.95))
    set_learning_rate(fresh, 1e-2)
    load_optimizer_tensors(fresh, other, saved)
    for seed in (3, 4):
        step(model, optimizer, seed)
        step(other, fresh, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    forgetful = small_model()
    forgetful.load_state_dict(model.state_dict())
    again = build_adamw(forgetful, weight_decay=0.05, betas=(0.9, 0.95))
    set_learning_rate(again, 1e-2)
    step(model, optimizer, 5)
    step(forgetful, again, 5)
    assert not torch.equal(model[0].weight, forgetful[0].weight)  # the moments do matter


def test_a_state_of_another_model_is_refused() -> None:
    model = small_model()
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    with pytest.raises(KeyError, match=r"9\.weight"):
        load_optimizer_tensors(optimizer, model, {"9.weight|exp_avg": torch.zeros(1)})


def test_a_bad_step_leaves_weights_and_moments_alone() -> None:
    """The fused kernel's `found_inf`, which the loop's guard rests on."""
    model = small_model()
    optimizer = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    set_learning_rate(optimizer, 1e-2)
    step(model, optimizer, 0)
    weights = [p.detach().clone() for p in model.parameters()]
    moments = {key: value.clone() for key, value in optimizer_tensors(optimizer, model).items()}
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(torch.equal(moments[key], value) for key, value in optimizer_tensors(optimizer, model).items())


def sgd_step_by_hand(model: torch.nn.Module, steps: int) -> list[torch.Tensor]:
    """The definition: v = m * v + g; w -= rate * (g + m * v)."""
    values = [p.detach().clone() for p in model.parameters()]
    speeds = [torch.zeros_like(value) for value in values]
    torch.manual_seed(1)
    for _ in range(steps):
        for value, speed in zip(values, speeds, strict=True):
            gradient = torch.randn_like(value)
            speed.mul_(0.9).add_(gradient)
            value.sub_(0.1 * (gradient + 0.9 * speed))
    return values


def test_sgd_is_nesterovs_from_its_first_step() -> None:
    model = small_model()
    expected = sgd_step_by_hand(model, 3)
    optimizer = build_sgd(model, weight_decay=0.0, momentum=0.9)
    torch.manual_seed(1)
    for _ in range(3):
        set_learning_rate(optimizer, 0.1)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    for p, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-6, atol=1e-7)


def test_sgd_leaves_a_bad_first_step_out() -> None:
    """torch makes its momentum in the first step: skipped there, it would be whatever lay in memory."""
    good, bad = small_model(), small_model()
    ends = []
    for model, flags in ((good, (0.0,)), (bad, (1.0, 0.0))):
        optimizer = build_sgd(model, weight_decay=0.01, momentum=0.9)
        set_learning_rate(optimizer, 0.1)
        for flag in flags:
            for p in model.parameters():
                p.grad = torch.full_like(p, torch.nan if flag else 0.5)
            optimizer.found_inf = torch.tensor(flag)  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        ends.append([*model.parameters(), *(state["momentum_buffer"] for state in optimizer.state.values())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_sgd_has_the_layers_and_the_decay_of_adamw_and_its_state_survives_a_file() -> None:
    model = bare_vit(NANO, num_classes=5)
    common = {"weight_decay": 0.05, "layer_decay": 0.75, "no_decay": tuple(model.no_weight_decay())}
    sgd, adamw = build_sgd(model, momentum=0.9, **common), build_adamw(model, betas=(0.9, 0.999), **common)
    for key in ("lr_scale", "weight_decay"):
        assert settings_of(sgd, model, key) == settings_of(adamw, model, key)
    torch.manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    sgd.step()
    saved = {key: value.clone() for key, value in optimizer_tensors(sgd, model).items()}
    assert set(saved) == {f"{name}|momentum_buffer" for name, p in model.named_parameters() if p.requires_grad}
    fresh = build_sgd(model, momentum=0.9, **common)
    load_optimizer_tensors(fresh, model, saved)
    again = optimizer_tensors(fresh, model)
    assert all(torch.equal(again[key], value) for key, value in saved.items())
