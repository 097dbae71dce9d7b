"""What a training costs before it is run: parameters, arithmetic and memory, counted on tensors without content.

The model runs once forward and once backward on torch's meta device, where shapes flow and nothing is computed, with the
true mask: an encoder that drops patches is counted on the visible ones alone. Arithmetic is what torch's flop counter
counts (matrix products, convolutions, attention; two operations a multiply-add), the backward included; attention's
backward without the recomputation of fused kernels. Memory is what autograd keeps, found by its own hooks, with
attention as a fused kernel keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgemim.analysis.saved_memory import Autocast, SavedBytes
from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel
from edgemim.models.encoder import TokenMask
from edgemim.tasks.task import Task
from edgemim.training.objective import Objective

META = torch.device("meta")
ENCODER, HEADS, TARGETS, TEACHER = PARTS = ("encoder", "decoders and heads", "targets and loss", "teacher")
_SMALL, _LARGE = 2, 4  # two, not one: batch norms of some heads want more than one image
_GIGA, _MIB = 1e9, 2**20

Build = Callable[[], tuple[Objective, nn.Module | None]]
Step = Callable[[int], Tensor]
"""Loss of a batch of so many images."""


@dataclass(frozen=True)
class Share:
    """What one part of a training costs.

    Attributes:
        parameters: all, fixed tables and frozen weights included.
        trainable: those that the optimizer moves.
        forward_gflop: of one image.
        backward_gflop: of one image.
    """

    parameters: int
    trainable: int
    forward_gflop: float
    backward_gflop: float


@dataclass(frozen=True)
class Memory:
    """Memory of one training process in MiB; workspaces of kernels and short-lived tensors come on top.

    Attributes:
        weights_mib: fp32, the teacher's included.
        gradients_mib: fp32.
        moments_mib: AdamW's two, fp32.
        fp32_mib_per_image: what autograd keeps for one image more in a batch.
        bf16_mib_per_image: the same where products are computed in bfloat16 (`precision: bf16`).
    """

    weights_mib: float
    gradients_mib: float
    moments_mib: float
    fp32_mib_per_image: float
    bf16_mib_per_image: float

    def total_mib(self, images: int, *, bf16: bool) -> float:
        """Of a process that computes so many images at once."""
        slope = self.bf16_mib_per_image if bf16 else self.fp32_mib_per_image
        return self.weights_mib + self.gradients_mib + self.moments_mib + images * slope


@dataclass(frozen=True)
class Cost:
    """The bill of one training.

    Attributes:
        parts: shares by the names in `PARTS`.
        memory: of one process.
        whole_image_gflop: the encoder's forward on an image without a mask, None where it has no such path.
        device: where it was counted: meta, or cpu where an operation has no form without content.
        teacher_summary: what the teacher is.
    """

    parts: Mapping[str, Share]
    memory: Memory
    whole_image_gflop: float | None
    device: str
    teacher_summary: str = ""

    @property
    def forward_gflop(self) -> float:
        """Forward of one image in training, teacher and targets included."""
        return sum(part.forward_gflop for part in self.parts.values())

    @property
    def training_gflop(self) -> float:
        """Forward and backward of one image, teacher and targets included."""
        return self.forward_gflop + sum(part.backward_gflop for part in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        found = asdict(self)
        return {**found, "forward_gflop": self.forward_gflop, "training_gflop": self.training_gflop}


def count_cost(build: Build, input_shape: tuple[int, ...]) -> Cost:
    """Count the objective and teacher that `build` makes on whatever device is torch's default when it is called.

    Args:
        build: makes both, each time anew.
        input_shape: of one image as the objective takes it, [3, s, s], or [views, 3, s, s].

    Raises UserError on an objective that cannot be run on random images alone.
    """
    try:
        return _count(build, input_shape, META)
    except NotImplementedError:  # an operation that must look at its numbers, such as indexing by a mask
        return _count(build, input_shape, torch.device("cpu"))


def _count(build: Build, input_shape: tuple[int, ...], device: torch.device) -> Cost:
    with device:
        objective, teacher = build()
        objective.train()
        step = step_of(objective, input_shape)
        flops = count_flops(objective, teacher, step)
        slopes = [_slope(objective, step, autocast) for autocast in (False, True)]
        whole = _whole_image(objective, input_shape[-1])
    parts = {name: Share(*_parameters(objective, teacher, name), *flops[name]) for name in PARTS}
    weights, trainable = (sum(getattr(part, key) for part in parts.values()) for key in ("parameters", "trainable"))
    memory = Memory(*(4 * number / _MIB for number in (weights, trainable, 2 * trainable)), *slopes)
    return Cost(parts, memory, whole, device.type, getattr(teacher, "summary", ""))


def step_of(objective: Objective, input_shape: tuple[int, ...]) -> Step:
    """The objective's loss as a function of the number of images. The step raises UserError if it needs more."""

    def step(count: int) -> Tensor:
        images = torch.zeros(count, *input_shape, dtype=torch.uint8)
        keys = torch.arange(count)
        if not isinstance(objective, MaskedImageModel):
            return objective(images, keys, labels_for(objective, count)).loss
        # Maskings look at the keys themselves, which are numbers on the CPU whatever device counts.
        with torch.device("cpu"):
            mask = objective.masking(torch.arange(count), objective.encoder.config.tokens)
        mask = TokenMask(mask.masked.to(images.device), mask.visible.to(images.device))
        return objective.loss(objective.normalization.apply(images), mask).loss

    return step


def labels_for(objective: Objective, count: int) -> Tensor:
    """Labels of the shape that an objective takes, all of the first class; what has no labels gets some all the same."""
    return objective.example_labels(count) if isinstance(objective, Task) else torch.zeros(count, dtype=torch.int64)


def count_flops(objective: Objective, teacher: nn.Module | None, step: Step) -> dict[str, tuple[float, float]]:
    """Forward and backward GFLOP of one image for each of `PARTS`."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        meter = _PartMeter(counter)
        with meter.watching(_modules(objective, teacher)):
            loss = step(_SMALL)
        forward = meter.take()
        meter.follow(loss)
        loss.backward()
        backward = meter.take()
    objective.zero_grad(set_to_none=True)
    scale = _GIGA * _SMALL
    return {name: (forward.get(name, 0) / scale, backward.get(name, 0) / scale) for name in PARTS}


class _PartMeter:
    """Splits a running count of operations over parts, by which module, or backward node, is at work."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self._counter = counter
        self._stack = [TARGETS]
        self._taken: dict[str, int] = {}
        self._last = 0
        self._nodes: dict[Node, str] = {}

    @contextmanager
    def watching(self, modules: Mapping[nn.Module, str]) -> Iterator[None]:
        """Count for a module's part while it runs."""
        handles = []
        for module, part in modules.items():
            handles.append(module.register_forward_pre_hook(partial(self._enter, part)))
            handles.append(module.register_forward_hook(lambda _, __, output: self._leave(output)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def follow(self, loss: Tensor) -> None:
        """Count for the part that made a node when its backward runs."""
        nodes: dict[Node, str] = {}
        _mark(nodes, [loss], TARGETS)
        for node in nodes:
            part = self._nodes.get(node, TARGETS)
            node.register_prehook(lambda _, part=part: self._switch(part))

    def take(self) -> dict[str, int]:
        """Operations of each part since the last call."""
        self._flush()
        taken, self._taken = self._taken, {}
        return taken

    def _enter(self, part: str, _: nn.Module, inputs: Any) -> None:
        self._flush()
        # What has no part yet was made by whoever calls.
        _mark(self._nodes, _tensors(inputs), self._stack[-1])
        self._stack.append(part)

    def _leave(self, output: Any) -> None:
        self._flush()
        # Inner modules end first: whatever has no part yet was made by this one.
        _mark(self._nodes, _tensors(output), self._stack.pop())

    def _switch(self, part: str) -> None:
        self._flush()
        self._stack[-1] = part

    def _flush(self) -> None:
        total = self._counter.get_total_flops()
        part = self._stack[-1]
        self._taken[part] = self._taken.get(part, 0) + total - self._last
        self._last = total


def _mark(marks: dict[Node, str], tensors: Any, part: str) -> None:
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node not in marks:
            marks[node] = part
            waiting += [following for following, _ in node.next_functions if following is not None]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _modules(objective: Objective, teacher: nn.Module | None) -> dict[nn.Module, str]:
    """Every module with its part; heads inside an exported network are heads."""
    found: dict[nn.Module, str] = {}
    for child in objective.children():
        part = TEACHER if _frozen(child) else HEADS
        found |= dict.fromkeys(child.modules(), part)
    for root, part in ((_encoder(objective), ENCODER), (_head(objective), HEADS), (teacher, TEACHER)):
        found |= dict.fromkeys(root.modules(), part) if root is not None else {}
    return found


def _encoder(objective: Objective) -> nn.Module:
    # A segmentation model holds its encoder beside pyramid and head; of a classifier all but its last layer is one.
    return getattr(objective, "encoder", None) or getattr(objective.exported, "encoder", objective.exported)


def _head(objective: Objective) -> nn.Module | None:
    if hasattr(objective, "encoder"):
        return None
    find = getattr(objective.exported, "get_classifier", None)
    return find() if find is not None else None


def _frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _parameters(objective: Objective, teacher: nn.Module | None, part: str) -> tuple[int, int]:
    """Parameters of a part, all and trainable; each counts for its innermost module, and once."""
    modules = _modules(objective, teacher)
    own = {id(p): p for module, name in modules.items() if name == part for p in module.parameters(recurse=False)}
    if part == HEADS:  # such as a mask token that the objective itself holds
        own |= {id(p): p for p in objective.parameters(recurse=False)}
    numbers = [(p.numel(), p.requires_grad) for p in own.values()]
    return sum(n for n, _ in numbers), sum(n for n, trainable in numbers if trainable)


def _slope(objective: Objective, step: Step, autocast: bool) -> float:
    """MiB that autograd keeps for one image more."""
    kept = []
    for count in (_SMALL, _LARGE):
        with SavedBytes(objective.parameters()) as saved, Autocast(autocast):
            step(count)
        kept.append(saved.total)
    return (kept[1] - kept[0]) / (_LARGE - _SMALL) / _MIB


def _whole_image(objective: Objective, image_size: int) -> float | None:
    encoder = _encoder(objective)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        try:
            encoder(torch.zeros(1, 3, image_size, image_size))
        except (TypeError, RuntimeError, UserError):  # no network on images alone
            return None
    return counter.get_total_flops() / _GIGA
