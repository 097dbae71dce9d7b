"""The masked image model: what counts in its loss, what is shared, and pictures that tell the truth."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from tiny_training import NANO, NORMALIZATION, GridTeacher, keys_of, mask_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.branches import LOSSES, Branch, MaskedImageModel, reduce
from edgemim.methods.decoders import LinearDecoderConfig, Pick, TransformerDecoderConfig
from edgemim.methods.masking import RandomMasking
from edgemim.methods.targets import FeatureTarget, PixelTarget
from edgemim.models.encoder import TokenMask

X, MASK = NORMALIZATION.apply(pixels(3)), mask_of(3)


def decoder_for(channels: int, **sizes: int) -> torch.nn.Module:
    torch.manual_seed(5)
    config = TransformerDecoderConfig.model_validate({"width": 12, **sizes})
    return config.build(Pick(NANO.depth), NANO.width, channels, NANO.grid)


def model_of(*branches: Branch, ratio: float = 0.75, drop: bool = True) -> MaskedImageModel:
    return MaskedImageModel(nano_encoder(), RandomMasking(ratio=ratio), branches, NORMALIZATION, drop=drop)


def pixel(name: str = "pixel", target: object = None, **options: object) -> Branch:
    return Branch(name, decoder_for(192), target or PixelTarget(8), **{"loss": "mse", **options})  # pyright: ignore


@dataclass(frozen=True)
class Shifted:
    """Pixels with a constant added to the visible (or the masked) patches' target."""

    visible: bool
    channels: int = 192

    def __call__(self, images: torch.Tensor, mask: TokenMask) -> torch.Tensor:
        chosen = ~mask.masked if self.visible else mask.masked
        return PixelTarget(8)(images, mask) + 5.0 * chosen.unsqueeze(-1)


def test_only_the_scored_patches_count() -> None:
    """Changing the target of visible patches leaves a masked loss alone, and the other way round."""
    for score, visible, changes in (
        ("masked", True, False),
        ("masked", False, True),
        ("visible", True, True),
        ("visible", False, False),
        ("all", True, True),
        ("all", False, True),
    ):
        plain = model_of(pixel(score=score)).loss(X, MASK).loss.detach()
        shifted = model_of(pixel(score=score, target=Shifted(visible))).loss(X, MASK).loss.detach()
        assert torch.equal(plain, shifted) is not changes, (score, visible)


def test_hidden_pixels_never_reach_the_prediction() -> None:
    model = model_of(pixel()).eval()
    hidden = MASK.masked.view(-1, 1, *NANO.grid).repeat_interleave(8, 2).repeat_interleave(8, 3)
    decoder = model.branches[0].decoder
    predictions = [
        decoder(model.encode(x, MASK), MASK) for x in (X, torch.where(hidden, -X, X), torch.where(hidden, X, -X))
    ]
    assert torch.equal(predictions[0], predictions[1])
    assert not torch.allclose(predictions[0], predictions[2], atol=1e-3)


@pytest.mark.parametrize("score", ["masked", "visible", "all"])
def test_reduction_is_the_mean_over_the_scored_tokens(score: str) -> None:
    loss = torch.rand(3, 16)
    numbers = [
        float(loss[row, patch])
        for row in range(3)
        for patch in range(16)
        if score == "all" or bool(MASK.masked[row, patch]) == (score == "masked")
    ]
    assert float(reduce(loss, MASK, score)) == pytest.approx(sum(numbers) / len(numbers), rel=1e-5)  # pyright: ignore


def test_an_empty_set_costs_nothing() -> None:
    assert float(reduce(torch.rand(2, 16), mask_of(2, ratio=0.0), "masked")) == 0.0


def test_losses_per_token() -> None:
    a, b = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    for row in range(2):
        for token in range(5):
            p, t = a[row, token], b[row, token]
            d = (p - t).abs()
            expected = {
                "mse": float((d**2).sum() / 7),
                "l1": float(d.sum() / 7),
                "smooth_l1": sum(0.5 * v * v if v < 1 else v - 0.5 for v in d.tolist()) / 7,
                "cosine": 2 - 2 * float(p @ t / (p.norm() * t.norm())),
            }
            assert expected.keys() == LOSSES.keys() - {"cross_entropy"}
            for name, value in expected.items():
                assert float(LOSSES[name](a, b)[row, token]) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_cross_entropy_is_of_class_numbers() -> None:
    logits, classes = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    found = LOSSES["cross_entropy"](logits, classes)
    for row in range(2):
        for token in range(5):
            share = logits[row, token].exp() / logits[row, token].exp().sum()
            assert float(found[row, token]) == pytest.approx(-float(share[classes[row, token]].log()), rel=1e-4)


def test_branches_add_up_by_weight_and_a_shared_target_is_computed_once() -> None:
    teacher = GridTeacher(8, 4)
    shared = FeatureTarget(teacher, 10, NORMALIZATION)
    model = model_of(
        Branch("first", decoder_for(10), shared, "smooth_l1", weight=0.5, score="all"),
        Branch("second", decoder_for(10, depth=2), shared, "cosine", weight=2.0),
        pixel(weight=0.25),
    )
    output = model.loss(X, MASK)
    assert teacher.calls == 1
    parts = {name: float(value.detach()) for name, value in output.metrics.items()}
    assert set(parts) == {"loss_first", "loss_second", "loss_pixel"}
    total = 0.5 * parts["loss_first"] + 2.0 * parts["loss_second"] + 0.25 * parts["loss_pixel"]
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-5)


def test_the_loss_is_that_of_a_prediction_made_by_hand() -> None:
    model = model_of(pixel(loss="l1", score="masked"))
    prediction = model.branches[0].decoder(model.encoder(X, MASK), MASK)
    chosen = MASK.masked
    expected = F.l1_loss(prediction[chosen], PixelTarget(8)(X, MASK)[chosen])
    torch.testing.assert_close(model.loss(X, MASK).loss, expected)


def test_the_forward_draws_its_masks_from_the_keys() -> None:
    model = model_of(pixel()).eval()
    images, keys = pixels(3), keys_of(3, seed=9)
    expected = model.loss(NORMALIZATION.apply(images), RandomMasking(ratio=0.75)(keys, 16)).loss
    assert torch.equal(model(images, keys, None).loss, expected)
    assert not torch.equal(model(images, keys_of(3, seed=8), None).loss, expected)


def test_the_teacher_is_in_no_checkpoint_and_is_not_trained() -> None:
    teacher = GridTeacher(8, 4)
    model = model_of(Branch("feature", decoder_for(10), FeatureTarget(teacher, 10, NORMALIZATION), "mse", score="all"))
    assert not any(key.startswith("teacher") or "project" in key for key in model.state_dict())
    assert {id(p) for p in teacher.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    model.train()
    assert not teacher.training
    model.loss(X, MASK).loss.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_what_leaves_training_has_timms_names() -> None:
    model = model_of(pixel())
    assert model.exported is model.encoder.vit
    assert set(model.exported.state_dict()) >= {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight"}


def test_taps_are_what_the_necks_read() -> None:
    deep = TransformerDecoderConfig(width=12).build(Pick(1, normed=False), NANO.width, 192, NANO.grid)
    assert model_of(pixel(), Branch("early", deep, PixelTarget(8), "mse")).taps == (1, 2)


def test_a_mask_token_replaces_dropping_where_the_method_says_so() -> None:
    linear = LinearDecoderConfig().build(Pick(2), NANO.width, 192, NANO.grid)
    model = model_of(Branch("pixel", linear, PixelTarget(8), "l1"), drop=False)
    assert model.encode(X, MASK).last.shape[1] == 17
    model.loss(X, MASK).loss.backward()
    assert model.mask_token is not None and model.mask_token.grad is not None
    assert model.mask_token.grad.any()


class Oracle(torch.nn.Module):
    """A decoder that knows the answer."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer, self.taps = answer, (2,)

    def forward(self, features: object, mask: TokenMask) -> torch.Tensor:
        return self.answer


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_reconstruction_is_the_image(normalize: bool) -> None:
    images, keys = pixels(3), keys_of(3)
    target = PixelTarget(8, normalize)
    x = NORMALIZATION.apply(images)
    model = model_of(Branch("pixel", Oracle(target(x, MASK)), target, "mse"))
    painted = model.reconstruct(images, keys)
    assert painted is not None
    hidden, full = painted
    torch.testing.assert_close(full, images.float() / 255, rtol=0, atol=1e-3)
    masked = RandomMasking(ratio=0.75)(keys, 16).masked
    rows = masked.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(hidden)
    assert torch.equal(hidden[rows], torch.full_like(hidden[rows], 0.5))
    torch.testing.assert_close(hidden[~rows], (images.float() / 255)[~rows], rtol=0, atol=1e-6)


def test_without_a_pixel_branch_there_is_no_picture() -> None:
    target = FeatureTarget(GridTeacher(8, 4), 10, NORMALIZATION)
    assert model_of(Branch("feature", decoder_for(10), target, "mse")).reconstruct(pixels(1), keys_of(1)) is None


def test_compositions_that_cannot_work_are_refused_when_built() -> None:
    with pytest.raises(UserError, match="leaves none of 16"):
        model_of(pixel(), ratio=0.97)
    linear = LinearDecoderConfig().build(Pick(2), NANO.width, 192, NANO.grid)
    with pytest.raises(UserError, match="'pixel'"):
        model_of(Branch("pixel", linear, PixelTarget(8), "mse"))
    model_of(Branch("pixel", linear, PixelTarget(8), "mse", score="all"), ratio=0.0)
    with pytest.raises(ValueError, match="distinct"):
        model_of(pixel(), pixel())
