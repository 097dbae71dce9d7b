"""Attention distillation: what trains what, and what is refused; numbers are compared in tests/golden."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NORMALIZATION, keys_of, mask_of, nano_encoder, pixels
from torch import Tensor

from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.distill import D2MaeConfig, DMaeConfig
from edgemim.models.build import build_encoder
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import HieraConfig, VitConfig
from edgemim.teachers import MaskedTeacher

SIX = VitConfig(width=24, depth=6, heads=3, patch_size=8, image_size=32)
# Wider, shallower, with other heads and larger patches on the same grid.
OTHER = VitConfig(width=40, depth=4, heads=5, patch_size=12, image_size=48)


@pytest.fixture(scope="module")
def teacher() -> MaskedTeacher:
    return MaskedTeacher(nano_encoder(OTHER, seed=1), Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def gradients(model: MaskedImageModel, branch: str) -> set[str]:
    """Names of the parameters that one branch's loss reaches."""
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    chosen = next(b for b in model.branches if b.name == branch)
    prediction, target = chosen.decoder(model.encode(x, mask), mask), chosen.target(x, mask)
    assert not target.requires_grad
    assert prediction.shape == target.shape or branch == "pixel"
    model.zero_grad()
    (prediction - target).square().mean().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def blocks(names: set[str]) -> set[int]:
    return {int(name.split(".")[3]) for name in names if name.startswith("encoder.vit.blocks.")}


def test_d2_reconstruction_reaches_the_blocks_up_to_its_tap_only(teacher: MaskedTeacher) -> None:
    model = D2MaeConfig().build(nano_encoder(SIX), NORMALIZATION, teacher)
    assert model.taps == (4, 6)
    assert blocks(gradients(model, "pixel")) == {0, 1, 2, 3}
    reached = gradients(model, "attention")
    assert blocks(reached) == {0, 1, 2, 3, 4, 5}
    assert not any(name.startswith("decoders.pixel") for name in reached)
    assert "encoder.vit.norm.weight" not in reached


def test_d_mae_reads_logits_of_a_block(teacher: MaskedTeacher) -> None:
    model = DMaeConfig().build(nano_encoder(SIX), NORMALIZATION, teacher)
    assert model.attention == (6,)
    reached = gradients(model, "attention_6_4")
    assert blocks(reached) == {0, 1, 2, 3, 4, 5}
    assert "encoder.vit.blocks.5.mlp.fc1.weight" not in reached  # the block's logits come before its MLP


def test_the_attention_loss_by_hand(teacher: MaskedTeacher) -> None:
    method = DMaeConfig(student_layers=(2, 5), teacher_layers=(1, 4), attention_weight=0.5)
    model = method.build(nano_encoder(SIX), NORMALIZATION, teacher)
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    output = model.loss(x, mask)
    expected = float(output.metrics["loss_pixel"])
    raw = teacher.normalization.normalize(
        torch.nn.functional.interpolate(NORMALIZATION.undo(x), size=(48, 48), mode="bicubic", antialias=True).clamp(
            0, 1
        )
    )
    for student, taught in ((2, 1), (5, 4)):
        ours, theirs = logits(model.encoder, x, mask, student), logits(teacher.encoder, raw, mask, taught)
        mix = dict(model.named_parameters())[f"decoders.attention_{student}_{taught}.mix.weight"]
        mixed = torch.nn.functional.conv2d(ours, mix[..., None, None])
        expected += 0.5 * float((mixed - theirs).square().mean())
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def logits(encoder: Encoder, x: Tensor, mask, block: int) -> Tensor:
    """Attention logits through timm's own projection."""
    attn = encoder.vit.blocks[block - 1].attn
    inside = encoder.vit.blocks[block - 1].norm1(encoder(x, mask, taps=[block - 1]).tokens[block - 1])
    b, t, width = inside.shape
    q, k, _ = attn.qkv(inside).view(b, t, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return q @ k.transpose(-1, -2) / (width / attn.num_heads) ** 0.5


def test_hidden_states_of_other_width(teacher: MaskedTeacher) -> None:
    method = DMaeConfig(hidden_student_layers=(0, 3, 6), hidden_teacher_layers=(0, 2, 4))
    model = method.build(nano_encoder(SIX), NORMALIZATION, teacher)
    assert blocks(gradients(model, "hidden_3_2")) == {0, 1, 2, 3}  # with block 4's own first norm
    assert "encoder.vit.norm.weight" in gradients(model, "hidden_6_4")


def test_the_teacher_runs_once_a_step_frozen_and_outside(
    teacher: MaskedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = DMaeConfig(
        student_layers=(2, 6), teacher_layers=(2, 4), hidden_student_layers=(6,), hidden_teacher_layers=(4,)
    )
    model = method.build(nano_encoder(SIX), NORMALIZATION, teacher).train()
    calls = []
    forward = teacher.encoder.forward
    monkeypatch.setattr(teacher.encoder, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    model.loss(NORMALIZATION.apply(pixels(2)), mask_of(2)).loss.backward()
    assert len(calls) == 1
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.train().training
    own = {p.data_ptr() for p in teacher.parameters()}
    assert own.isdisjoint({p.data_ptr() for p in model.parameters()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_layers": (7,)}, "layers 1 to 6, not 7"),
        ({"student_layers": (1, 2)}, "2 layers of the student and 1"),
        ({"hidden_student_layers": (1,), "hidden_teacher_layers": (5,)}, "teacher has layers 0 to 4, not 5"),
    ],
)
def test_layers_that_are_not_there(teacher: MaskedTeacher, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DMaeConfig(**options).build(nano_encoder(SIX), NORMALIZATION, teacher)


def test_what_is_no_teacher_is_refused(teacher: MaskedTeacher) -> None:
    with pytest.raises(UserError, match="needs a vision transformer"):
        D2MaeConfig().build(nano_encoder(SIX), NORMALIZATION, None)


HIERA = HieraConfig(embed_dim=4, stages=(1, 1, 3, 2), patch_stride=2, patch_kernel=3, image_size=32)
HIERA_TEACHER = HIERA.model_copy(update={"embed_dim": 6, "first_heads": 2, "stages": (1, 1, 1, 1)})


def hierarchical(method: DMaeConfig | D2MaeConfig) -> MaskedImageModel:
    torch.manual_seed(0)
    teacher = MaskedTeacher(build_encoder(HIERA_TEACHER), NORMALIZATION)
    return method.build(build_encoder(HIERA), NORMALIZATION, teacher)


def test_a_hierarchical_student_learns_several_layers_of_a_shallower_teacher() -> None:
    """Heads of each stage are mixed into those of the teacher's, and hidden states of different widths adapted."""
    method = DMaeConfig(
        mask_ratio=0.5,
        student_layers=(5, 7),
        teacher_layers=(4, 4),
        hidden_student_layers=(1, 7),
        hidden_teacher_layers=(1, 4),
    )
    model = hierarchical(method)
    shapes = {name: tuple(p.shape) for name, p in model.decoders.named_parameters() if "mix" in name or "adapt" in name}
    assert shapes == {
        "attention_5_4.mix.weight": (16, 4),
        "attention_7_4.mix.weight": (16, 8),
        "hidden_1_1.adapt.weight": (6, 4),
        "hidden_7_4.adapt.weight": (48, 32),
    }
    x, keys = NORMALIZATION.apply(pixels(2)), keys_of(2)
    mask = model.masking(keys, HIERA.tokens)
    output = model.loss(x, mask)
    torch.manual_seed(0)  # as the model's own was drawn
    teacher = MaskedTeacher(build_encoder(HIERA_TEACHER), NORMALIZATION)
    theirs = teacher(NORMALIZATION.undo(x), mask, attention=[4]).attention[4]
    ours = model.encoder(x, mask, attention=[5]).attention[5]
    weight = dict(model.named_parameters())["decoders.attention_5_4.mix.weight"]
    mixed = torch.stack([sum(w * ours[:, h] for h, w in enumerate(row)) for row in weight], dim=1)
    torch.testing.assert_close(output.metrics["loss_attention_5_4"], (mixed - theirs).square().mean().detach())


def test_decoupled_distillation_of_a_hierarchical_student() -> None:
    """Pixels train the blocks up to two thirds of the depth, the extra block's logits all."""
    model = hierarchical(D2MaeConfig(mask_ratio=0.5))
    x, mask = NORMALIZATION.apply(pixels(2)), model.masking(keys_of(2), HIERA.tokens)
    features = model.encode(x, mask)
    for branch, last in zip(model.branches, (5, 7), strict=True):
        model.zero_grad()
        loss = branch.decoder(features, mask).square().sum()
        loss.backward(retain_graph=True)
        reached = {
            name.split(".")[3] for name, p in model.named_parameters() if "vit.blocks" in name and p.grad is not None
        }
        assert {int(number) + 1 for number in reached} == set(range(1, last + 1))


def test_hierarchical_layers_that_do_not_match_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"block 2 of the student .hiera. attends within mask units or pools.*one of 4, 5"
    ):
        DMaeConfig(student_layers=(2,)).check(HIERA)
    with pytest.raises(UserError, match="block 1 of the teacher"):
        hierarchical(DMaeConfig(teacher_layers=(1,)))
    with pytest.raises(UserError, match="a patch is 4 x 4 tokens after block 1 of the student and 1 x 1 after block 4"):
        hierarchical(DMaeConfig(hidden_student_layers=(1,), hidden_teacher_layers=(4,)))


def test_decoupled_hidden_states_stop_before_the_block_that_is_thrown_away(teacher: MaskedTeacher) -> None:
    method = D2MaeConfig(hidden_student_layers=(0, 3), hidden_teacher_layers=(0, 2))
    model = method.build(nano_encoder(SIX), NORMALIZATION, teacher)
    assert blocks(gradients(model, "hidden_3_2")) == {0, 1, 2, 3}
    with pytest.raises(UserError, match="the student has layers 0 to 5, not 6"):
        D2MaeConfig(hidden_student_layers=(6,), hidden_teacher_layers=(2,)).build(
            nano_encoder(SIX), NORMALIZATION, teacher
        )
