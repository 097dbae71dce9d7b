"""MoCo-v3 as a run: momentum encoder, frozen patches, exact resume, a real run from photos. Its numbers are compared with
the published code in tests/golden; it masks nothing, so that the invariances of masked losses do not apply."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_training import NANO, NORMALIZATION, TinyBatch, keys_of, nano_encoder, pixels

from edgemim.commands.pretrain import PretrainConfig, pretrain
from edgemim.data.transforms import PretrainTransform
from edgemim.errors import UserError
from edgemim.methods.mocov3 import MocoV3Config, MomentumContrast, momentum_at
from edgemim.models.encoder import Encoder
from edgemim.models.sizes import SIZES, VitConfig
from edgemim.models.weights import load_encoder
from edgemim.training.distributed import World
from edgemim.training.loop import Trainer
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, TrainingConfig

SMALL: dict[str, Any] = {"hidden_width": 32, "embedding_width": 8}
STEPS = 6


def model_of(**changes: Any) -> MomentumContrast:
    encoder = nano_encoder()
    return MocoV3Config(**{**SMALL, **changes}).build(encoder, NORMALIZATION, None)


def views(count: int, seed: int = 0) -> torch.Tensor:
    """Random uint8 views [count, 2, 3, 32, 32]; the second is a noisy copy of the first."""
    first = pixels(count, seed=seed)
    second = (first.int() + pixels(count, seed=seed + 99).int() // 4).clamp(max=255).to(torch.uint8)
    return torch.stack([first, second], dim=1)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(folder: Path, stop: int = STEPS, **changes: Any) -> tuple[MomentumContrast, list[float]]:
    """Go on from the folder's newest checkpoint to the step `stop`; the model, and the progress that it was told."""
    told: list[float] = []
    model = model_of()
    own = model.begin_step
    model.begin_step = lambda progress: (told.append(progress), own(progress))[1]  # pyright: ignore
    config = TrainingConfig(batch_size=8, base_lr=0.1, epochs=STEPS, checkpoint_epochs=1, precision="fp32", **changes)
    optimizer = build_adamw(model, weight_decay=0.1, betas=(0.9, 0.999))
    world = World(0, 1, torch.device("cpu"))
    trainer = Trainer(model, optimizer, config, Plan(1, STEPS, 1), world, folder, data_fingerprint="", label="test")
    start, parts = trainer.restore(), config.accumulate

    def batches() -> Any:
        for number in range(start * parts, stop * parts):
            count = 8 // parts
            yield TinyBatch(views(count, number), torch.zeros(count), keys_of(count))
        if stop < STEPS:
            raise KeyboardInterrupt

    if stop < STEPS:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(batches(), start)
    else:
        trainer.run(batches(), start)
    return model, told


def test_momentum_rises_along_a_half_cosine() -> None:
    assert momentum_at(0.0, 0.99) == pytest.approx(0.99)
    assert momentum_at(0.5, 0.99) == pytest.approx(0.995)
    assert momentum_at(1.0, 0.99) == pytest.approx(1.0)
    assert momentum_at(0.25, 0.9) == pytest.approx(1 - 0.1 * (1 + math.sqrt(0.5)) / 2)


def test_the_momentum_encoder_follows_and_keeps_what_is_equal() -> None:
    model = model_of(momentum=0.9)
    names = dict(model.named_parameters())
    pairs = [(names["momentum_" + name], value) for name, value in names.items() if "momentum_" + name in names]
    assert len(pairs) == len([*model.momentum_encoder.parameters(), *model.momentum_projector.parameters()])
    assert all(torch.equal(copy, own) for copy, own in pairs)
    model.begin_step(0.3)
    assert all(torch.equal(copy, own) for copy, own in pairs)  # not a bit of rounding
    with torch.no_grad():
        for _, own in pairs:
            own += 1.0
    before = [copy.clone() for copy, _ in pairs]
    model.begin_step(0.5)
    for old, (copy, own) in zip(before, pairs, strict=True):
        torch.testing.assert_close(copy, 0.95 * old + 0.05 * own)
    model.begin_step(1.0)
    torch.testing.assert_close(pairs[0][0], 0.95 * before[0] + 0.05 * pairs[0][1])


def test_gradients_reach_all_but_the_frozen_and_the_momentum_encoder() -> None:
    model = model_of().train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    model(views(6), keys_of(6), None).loss.backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    frozen = {"encoder.vit.pos_embed", "encoder.vit.patch_embed.proj.weight", "encoder.vit.patch_embed.proj.bias"}
    assert without == frozen | {name for name in before if name.startswith("momentum_")}
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    trained = model_of(freeze_patch_embedding=False)
    trained(views(6)).loss.backward()
    assert trained.encoder.vit.patch_embed.proj.weight.grad is not None
    assert bool(trained.encoder.vit.patch_embed.proj.weight.grad.any())


def test_the_loss_is_symmetric_and_falls_when_views_agree() -> None:
    model = model_of().train()
    x, y = NORMALIZATION.apply(pixels(6)), NORMALIZATION.apply(pixels(6, seed=5))
    one, other = model.loss(x, y), model.loss(y, x)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.metrics["loss_q1k2"], other.metrics["loss_q2k1"])
    torch.testing.assert_close(one.loss.detach(), one.metrics["loss_q1k2"] + one.metrics["loss_q2k1"])
    optimizer = build_adamw(model, weight_decay=0.0, betas=(0.9, 0.999))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    losses = []
    for step in range(30):
        model.begin_step(step / 30)
        output = model(views(8))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert float(output.metrics["contrast_top1"]) > 0.7


def test_published_initialisation() -> None:
    config = VitConfig(width=96, depth=2, heads=3, patch_size=8, image_size=32)
    torch.manual_seed(0)
    encoder = Encoder(config)
    MocoV3Config(**SMALL).build(encoder, NORMALIZATION, None)
    weight = encoder.vit.blocks[1].attn.qkv.weight.detach()  # pyright: ignore
    assert float(weight.abs().max()) == pytest.approx(math.sqrt(6 / (96 + 96)), rel=1e-2)  # not of 96 and 288
    patch = encoder.vit.patch_embed.proj.weight.detach()
    assert float(patch.abs().max()) == pytest.approx(math.sqrt(6 / (3 * 64 + 96)), rel=1e-2)
    assert float(encoder.vit.cls_token.detach().abs().max()) < 1e-5  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "ema_decay": 0.9}], ids=["plain", "parts"])
def test_a_resumed_run_ends_at_the_same_bits_momentum_encoder_included(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, told = train(tmp_path / "whole", **changes)
    assert told == [step / STEPS for step in range(STEPS)]  # once a step, also where it has two parts
    train(tmp_path / "parts", 2, **changes)
    resumed, told = train(tmp_path / "parts", **changes)
    assert told == [step / STEPS for step in range(2, STEPS)]
    ours, theirs = state(resumed), state(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    fresh = state(model_of())
    moved = {name for name in theirs if not torch.equal(theirs[name], fresh[name])}
    assert {"momentum_encoder.vit.blocks.0.attn.qkv.weight", "momentum_projector.1.running_mean"} <= moved
    assert "encoder.vit.patch_embed.proj.weight" not in moved


def test_one_image_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(UserError, match="batch_size to 2"):
        model_of()(views(1))


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base", "vit_micro", "vit_nano"])
def test_every_plain_size_is_built(name: str) -> None:
    size = SIZES[name]
    assert isinstance(size, VitConfig)
    with torch.device("meta"):
        model = MocoV3Config().build(Encoder(size), NORMALIZATION, None)
        q = model.project(torch.empty(2, 3, size.image_size, size.image_size))[0]
    assert q.shape == (2, 256)
    heads = sum(p.numel() for part in (model.projector, model.predictor) for p in part.parameters())
    # Five matrices, and a scale and a shift for each of the three norms that have them.
    assert heads == size.width * 4096 + 4096**2 + 3 * 4096 * 256 + 3 * 2 * 4096


def test_views_are_made_from_the_files_pixels_as_published() -> None:
    made = MocoV3Config().build_transform(PretrainTransform(), 32)
    image = pixels(1, 64)[0].permute(1, 2, 0).numpy()
    assert made(image, 5).shape == (2, 3, 32, 32)
    first, second = MocoV3Config().first_view, MocoV3Config().second_view
    assert (first.blur_probability, first.solarize_probability) == (1.0, 0.0)
    assert (second.blur_probability, second.solarize_probability) == (0.1, 0.2)


def test_a_run_on_photos_resumes_and_hands_on_an_encoder_in_timms_names(photos: Path, tmp_path: Path) -> None:
    def config(out: Path, **changes: Any) -> PretrainConfig:
        settings = {"knn_every": 0, "workers": 0, "batch_size": 40, "warmup_epochs": 1, "epochs": 3, "device": "cpu"}
        method = MocoV3Config(**SMALL)
        return PretrainConfig.model_validate(
            {**settings, "data": photos, "out": out, "method": method, "encoder": "vit_nano", **changes}
        )

    results = pretrain(config(tmp_path / "whole"))
    assert results["steps"] == 9
    last = results["last_metrics"]
    assert math.isfinite(last["loss"]) and last["loss_q1k2"] + last["loss_q2k1"] == pytest.approx(
        last["loss"], rel=1e-4
    )
    assert not (tmp_path / "whole" / "pictures").exists()
    # The newest checkpoint is lost: the run goes on from the one before it, and ends at the same weights.
    pretrain(config(tmp_path / "again"))
    newest = sorted((tmp_path / "again" / "checkpoints").glob("step-*"))[-1]
    (newest / "model.safetensors").write_bytes(b"lost")
    pretrain(config(tmp_path / "again", resume=True))
    whole, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)

    encoder = load_encoder(tmp_path / "whole")
    size = encoder.config
    twin = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size.image_size,
        patch_size=size.patch_size,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=0,
    )
    twin.load_state_dict(whole, strict=True)
    x = NORMALIZATION.apply(pixels(2, size.image_size))
    with torch.no_grad():
        torch.testing.assert_close(twin.eval().forward_features(x), encoder(x).last)


def test_the_default_size_of_tests_has_views_of_its_own_size() -> None:
    assert views(1).shape[-1] == NANO.image_size
