"""What is counted, against closed forms, published parameter counts, and the same training run on real tensors."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tiny_training import NANO, NORMALIZATION, keys_of, pixels
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgemim.analysis.cost import ENCODER, HEADS, TARGETS, TEACHER, Cost, count_cost
from edgemim.analysis.weightless import weightless_teacher
from edgemim.methods import D2MaeConfig, DeepMimConfig, MaeConfig, MaskFeatConfig, MffConfig, SimMimConfig
from edgemim.models.build import build_encoder
from edgemim.models.encoder import Encoder
from edgemim.models.sizes import SIZES, VitConfig
from edgemim.teachers import TimmTeacher
from edgemim.training.objective import Objective, StepOutput

TINY = VitConfig()


@cache
def counted(method: Any, size: VitConfig = TINY, teacher: Any = None) -> Cost:
    """The cost of a method on a plain encoder."""

    def build() -> tuple[Objective, nn.Module | None]:
        frozen = None if teacher is None else weightless_teacher(method, teacher, size)
        return method.build(Encoder(size), NORMALIZATION, frozen), frozen

    return count_cost(build, (3, size.image_size, size.image_size))


def block_gmac(width: int, tokens: int) -> float:
    """qkv, projection and MLP of a block, and its attention's two products: 12 N D^2 + 2 N^2 D."""
    return (12 * tokens * width**2 + 2 * tokens**2 * width) / 1e9


def test_the_lightweight_masked_autoencoder_is_its_closed_form() -> None:
    found = counted(MaeConfig())
    embed = 49 * 768 * 192 / 1e9
    encoder = embed + 12 * block_gmac(192, 50)
    decoder = (50 * 192 * 96 + 197 * 96 * 768) / 1e9 + block_gmac(96, 197)
    assert found.parts[ENCODER].forward_gflop == pytest.approx(2 * encoder, rel=1e-6)
    assert found.parts[HEADS].forward_gflop == pytest.approx(2 * decoder, rel=1e-6)
    # Backward is twice the forward, but nobody asks for the gradient of the pixels.
    assert found.parts[ENCODER].backward_gflop == pytest.approx(4 * encoder - 2 * embed, rel=1e-6)
    assert found.parts[HEADS].backward_gflop == pytest.approx(4 * decoder, rel=1e-6)
    assert found.parts[TARGETS].forward_gflop == found.parts[TEACHER].forward_gflop == 0
    assert found.training_gflop == pytest.approx(6 * (encoder + decoder) - 2 * embed, rel=1e-6)
    whole = (196 * 768 * 192) / 1e9 + 12 * block_gmac(192, 197)
    assert found.whole_image_gflop == pytest.approx(2 * whole, rel=1e-6)
    assert found.device == "meta"


def test_parameters_are_the_published_ones() -> None:
    found = counted(MaeConfig())
    assert found.parts[ENCODER].parameters == 5_717_416 - 193_000  # without the 1000-way head
    assert found.parts[ENCODER].trainable == 5_717_416 - 193_000 - 197 * 192  # positions are fixed
    trained = found.parts[ENCODER].trainable + found.parts[HEADS].trainable
    assert found.memory.gradients_mib == pytest.approx(4 * trained / 2**20)
    assert found.memory.moments_mib == pytest.approx(8 * trained / 2**20)
    fusion = counted(MffConfig()).parts[HEADS].parameters - found.parts[HEADS].parameters
    assert fusion == 5 * (192**2 + 192) + 6


def test_a_masked_token_in_place_costs_as_much_as_a_seen_one() -> None:
    found = counted(SimMimConfig())
    encoder = 196 * 768 * 192 / 1e9 + 12 * block_gmac(192, 197)
    assert found.parts[ENCODER].forward_gflop == pytest.approx(2 * encoder, rel=1e-6)
    assert found.parts[HEADS].forward_gflop == pytest.approx(2 * 196 * 192 * 768 / 1e9, rel=1e-6)
    assert found.parts[HEADS].parameters == 192 * 768 + 768 + 192  # the mask token belongs to it


def test_the_gradients_of_the_histograms_are_the_targets_share() -> None:
    # A 3 x 3 kernel for each colour and direction at every pixel.
    assert counted(MaskFeatConfig()).parts[TARGETS].forward_gflop == pytest.approx(2 * 6 * 9 * 224**2 / 1e9)


def test_several_decoders_are_the_heads_share() -> None:
    one, four = counted(MaeConfig()), counted(DeepMimConfig())
    assert four.parts[ENCODER] == one.parts[ENCODER]
    for key in ("parameters", "trainable", "forward_gflop", "backward_gflop"):
        assert getattr(four.parts[HEADS], key) == pytest.approx(4 * getattr(one.parts[HEADS], key))


def test_a_neck_that_calls_the_encoders_norm_is_still_a_head() -> None:
    """Fused stages are projected by a function, then normed by a module of the encoder."""
    size = SIZES["hiera_micro"]
    method = MaeConfig(mask_ratio=0.5)
    found = count_cost(lambda: (method.build(build_encoder(size), NORMALIZATION, None), None), (3, 64, 64))
    heads = found.parts[HEADS]
    assert heads.backward_gflop == pytest.approx(2 * heads.forward_gflop)
    assert found.parts[ENCODER].backward_gflop < 2 * found.parts[ENCODER].forward_gflop


def test_a_teacher_stops_at_what_is_read_of_it_and_has_no_backward() -> None:
    found = counted(D2MaeConfig(), teacher=TimmTeacher(model="vit_base_patch16_224.mae"))
    share = found.parts[TEACHER]
    # Eleven blocks; of the last, queries, keys and values, and one of the two products.
    gmac = 49 * 768**2 / 1e9 + 11 * block_gmac(768, 50) + (3 * 50 * 768**2 + 50**2 * 768) / 1e9
    assert share.forward_gflop == pytest.approx(2 * gmac, rel=1e-6)
    assert share.backward_gflop == share.trainable == 0
    assert share.parameters == 85_798_656  # ViT-B/16 without its head
    assert found.memory.weights_mib > 4 * share.parameters / 2**20
    assert "vit_base_patch16_224" in found.teacher_summary


@pytest.mark.parametrize("method", [MaeConfig(), DeepMimConfig(), SimMimConfig()], ids=lambda method: method.name)
def test_counting_without_content_is_counting_with_it(method: Any) -> None:
    found = counted(method, NANO)
    model = method.build(Encoder(NANO), NORMALIZATION, None)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(pixels(3), keys_of(3)).loss.backward()
    assert found.training_gflop == pytest.approx(counter.get_total_flops() / 3e9)


def kept_for_real(model: nn.Module, count: int, size: int, bf16: bool) -> int:
    """Bytes that autograd holds on to in a real step on the CPU."""
    known = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        model(pixels(count, size), keys_of(count))
    return sum(kept.values())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("method", [MaeConfig(), SimMimConfig()], ids=lambda method: method.name)
def test_memory_for_the_backward_is_what_a_real_step_keeps(method: Any, bf16: bool) -> None:
    size = VitConfig(width=96, depth=4, heads=3, patch_size=8, image_size=64)
    model = method.build(Encoder(size), NORMALIZATION, None).train()
    real = (kept_for_real(model, 6, 64, bf16) - kept_for_real(model, 2, 64, bf16)) / 4 / 2**20
    memory = counted(method, size).memory
    # Our outline of autocast casts once more than torch's here and there.
    assert (memory.bf16_mib_per_image if bf16 else memory.fp32_mib_per_image) == pytest.approx(real, rel=0.06)


def test_the_total_is_fixed_costs_and_images() -> None:
    memory = counted(MaeConfig(), NANO).memory
    fixed = memory.weights_mib + memory.gradients_mib + memory.moments_mib
    assert memory.total_mib(0, bf16=False) == fixed
    assert memory.total_mib(10, bf16=True) == pytest.approx(fixed + 10 * memory.bf16_mib_per_image)


class Picky(Objective):
    """An objective that must look at its numbers: nothing flows without content."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 5)
        self.copy = nn.Linear(5, 7).requires_grad_(False)

    def forward(self, images: Tensor, keys: Tensor, labels: Tensor) -> StepOutput:
        rows = images.float().mean((2, 3))
        chosen = rows[rows[:, 0] == 0]  # black images: all of them
        with torch.no_grad():
            self.copy(self.encoder(rows))
        return StepOutput(self.encoder(chosen).square().mean())


def test_what_cannot_flow_without_content_is_counted_on_the_cpu() -> None:
    found = count_cost(lambda: (Picky(), None), (3, 8, 8))
    assert found.device == "cpu"
    assert found.parts[ENCODER].forward_gflop == pytest.approx(2 * 2 * 15 / 1e9)
    assert found.parts[ENCODER].backward_gflop == pytest.approx(2 * 15 / 1e9)  # of the weights alone
    # A frozen copy inside the objective is a teacher.
    assert (found.parts[TEACHER].parameters, found.parts[TEACHER].trainable) == (42, 0)
    assert found.parts[TEACHER].forward_gflop == pytest.approx(2 * 35 / 1e9)
    assert found.whole_image_gflop is None
