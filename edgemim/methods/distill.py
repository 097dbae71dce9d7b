"""D-MAE and D2-MAE: MAE that also matches the attention of a frozen teacher on the same visible patches.

A Closer Look at Self-Supervised Lightweight Vision Transformers, arXiv 2205.14443 (D-MAE), and An Experimental Study on
Exploring Strong Lightweight Vision Transformers via Masked Image Modeling Pre-Training, arXiv 2404.12210 (decoupled).
L = L_rec + w * sum_layers MSE(M(A_S), A_T): A are logits q k^T / sqrt(d) before the softmax, class token included, over
visible tokens; M is a 1 x 1 mixing of heads without bias. D-MAE takes A_S of a block of the student (the last), D2 of
the queries and keys of one block more, which stops there and is thrown away, while the pixels are predicted from
block 2L/3 (8 of 12): reconstruction trains the blocks up to there, distillation all.
Hidden states (linear adapters, no bias) are implemented in the published code and switched off; so here.
The attention term scores visible tokens: a change of visible pixels changes it, of masked ones not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.methods.branches import Branch, MaskedImageModel
from edgemim.methods.decoders import DecoderConfig, TransformerDecoderConfig, final_tokens
from edgemim.methods.mae import pixel_branch
from edgemim.methods.masking import RandomMasking
from edgemim.methods.method import Method, TeacherKind
from edgemim.methods.targets import Derived
from edgemim.models.encoder import Encoder, Features, TokenMask, initialise_linear
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.teachers import MaskedTeacher

Logits = Float[Tensor, "b heads t t"]


class BlockLogits(nn.Module):
    """Reads the attention logits of one of the encoder's blocks."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.attention = (block,)

    def forward(self, features: Features) -> Logits:
        """Logits of every head, class token first."""
        return features.attention[self.attention[0]]


class ExtraLogits(nn.Module):
    """Queries and keys of one block more than the encoder has; there are no values, for it ends at the logits."""

    def __init__(self, tap: int, width: int, heads: int) -> None:
        super().__init__()
        self.taps, self.heads = (tap,), heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qk = nn.Linear(width, 2 * width)
        self.qk.apply(initialise_linear)

    def forward(self, features: Features) -> Logits:
        """Logits of every head, class token first."""
        x = self.norm(features.tokens[self.taps[0]])
        b, t, width = x.shape
        q, k = self.qk(x).reshape(b, t, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)


class HeadMixer(nn.Module):
    """Each of the teacher's heads as a linear combination of the student's: a 1 x 1 convolution without bias."""

    def __init__(self, source: nn.Module, heads: int, teacher_heads: int) -> None:
        super().__init__()
        self.source = source
        self.mix = nn.Linear(heads, teacher_heads, bias=False)

    def forward(self, features: Features, mask: TokenMask) -> Logits:
        """Predicted logits of the teacher's heads."""
        return torch.einsum("ts,bsij->btij", self.mix.weight, self.source(features))


class SameHeads(nn.Module):
    """The student's heads as they are, for a teacher with as many."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source

    def forward(self, features: Features, mask: TokenMask) -> Logits:
        """Predicted logits of the teacher's heads."""
        return self.source(features)


class HiddenAdapter(nn.Module):
    """The teacher's tokens as a linear map, without bias, of the student's after a block, as its next norm leaves them."""

    def __init__(self, tap: int, width: int, teacher_width: int) -> None:
        super().__init__()
        self.taps = (tap,)
        self.adapt = nn.Linear(width, teacher_width, bias=False)

    def forward(self, features: Features, mask: TokenMask) -> Float[Tensor, "b t width"]:
        """Predicted tokens of the teacher, class token first."""
        return self.adapt(features.entering(self.taps[0]))


@dataclass(frozen=True)
class TeacherPass:
    """One pass of the teacher over a batch's visible patches, from which several targets are read."""

    teacher: MaskedTeacher
    normalization: Normalization
    taps: tuple[int, ...]
    attention: tuple[int, ...]

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Features:
        """The teacher's features of normalised images."""
        return self.teacher(self.normalization.undo(images), mask, taps=self.taps, attention=self.attention)

    def logits(self, block: int) -> Derived:
        """Attention logits of a block as a target."""
        tokens = self.teacher.config.tokens + self.teacher.config.prefix
        return Derived(self, partial(_attention_of, block=block), channels=tokens)

    def hidden(self, tap: int) -> Derived:
        """Tokens after a block, behind the teacher's next norm, as a target."""
        return Derived(self, partial(Features.entering, tap=tap), channels=self.teacher.config.width_at(tap))


def _attention_of(features: Features, block: int) -> Logits:
    return features.attention[block]


class DMaeConfig(Method):
    """Masked autoencoder plus attention distillation; --teacher names a plain vision transformer with as many patches."""

    name: Literal["d_mae"] = "d_mae"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden, from the teacher too."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and deviation."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts the pixels."""
    attention_weight: float = pydantic.Field(default=1.0, gt=0.0)
    """Weight of the attention loss, a sum over layers."""
    hidden_weight: float = pydantic.Field(default=1.0, gt=0.0)
    """Weight of the loss of hidden states, a sum over layers."""
    student_layers: tuple[int, ...] = ()
    """Blocks of the student whose attention is matched; default the last."""
    teacher_layers: tuple[int, ...] = ()
    """Blocks of the teacher, one for each of the student's; default the last."""
    hidden_student_layers: tuple[int, ...] = ()
    """Blocks after which the student's tokens are matched (0: the embeddings); default none."""
    hidden_teacher_layers: tuple[int, ...] = ()
    """Blocks of the teacher, one for each of these."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """A vision transformer on the student's visible patches."""
        return "masked"

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on layers of the student that are not there or have no attention map over all tokens."""
        _within("student_layers", self.student_layers, "student", size.depth, first=1)
        _within("hidden_student_layers", self.hidden_student_layers, "student", size.depth, first=0)
        check_maps(size, self.student_layers, "the student")

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model. Raises UserError without a teacher, or on layers that are not there or do not match."""
        teacher = _checked(self.name, teacher)
        size, other = encoder.config, teacher.config
        students, teachers = self.student_layers or (size.depth,), self.teacher_layers or (other.depth,)
        pairs = _pairs("student_layers", students, teachers, size, other, first=1)
        check_maps(size, students, "the student")
        check_maps(other, teachers, "the teacher")
        hidden = (self.hidden_student_layers, self.hidden_teacher_layers)
        tokens = _pairs("hidden_student_layers", *hidden, size, other, first=0)
        check_tokens(size, other, [*pairs, *tokens])
        source = TeacherPass(teacher, normalization, tuple(t for _, t in tokens), tuple(t for _, t in pairs))
        branches = [pixel_branch(encoder, self.decoder, self.norm_pix_loss, weight=1.0)]
        for student, taught in pairs:
            mixer = HeadMixer(BlockLogits(student), size.heads_at(student), other.heads_at(taught))
            branches.append(
                _match(f"attention_{student}_{taught}", mixer, source.logits(taught), self.attention_weight)
            )
        branches += _hidden_branches(tokens, size, source, self.hidden_weight)
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), branches, normalization)


class D2MaeConfig(Method):
    """Decoupled distillation: pixels from an earlier block, a teacher's attention from one block more than there is."""

    name: Literal["d2_mae"] = "d2_mae"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden, from the teacher too."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and deviation."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts the pixels."""
    pixel_layer: int | None = pydantic.Field(default=None, ge=1)
    """Block that the pixels are predicted from; default two thirds of the depth (8 of 12)."""
    teacher_layer: int | None = pydantic.Field(default=None, ge=1)
    """Block of the teacher whose attention is matched; default the last."""
    attention_weight: float = pydantic.Field(default=1.0, gt=0.0)
    """Weight of the attention loss."""
    hidden_weight: float = pydantic.Field(default=1.0, gt=0.0)
    """Weight of the loss of hidden states, a sum over layers."""
    hidden_student_layers: tuple[int, ...] = ()
    """Blocks, but for the last, after which the student's tokens are matched (0: the embeddings); default none."""
    hidden_teacher_layers: tuple[int, ...] = ()
    """Blocks of the teacher, one for each of these."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """A vision transformer on the student's visible patches."""
        return "masked"

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model. Raises UserError without a teacher, or on layers that are not there."""
        teacher = _checked(self.name, teacher)
        size, other = encoder.config, teacher.config
        tap = self.pixel_layer or max(1, round(2 * size.depth / 3))
        taught = self.teacher_layer or other.depth
        _pairs("pixel_layer", (tap,), (taught,), size, other, first=1)
        check_maps(other, (taught,), "the teacher")
        hidden = (self.hidden_student_layers, self.hidden_teacher_layers)
        tokens = _pairs("hidden_student_layers", *hidden, size, other, first=0)
        # What the last block leaves enters the block that is thrown away, whose norm is not the encoder's.
        _within("hidden_student_layers", self.hidden_student_layers, "student", size.depth - 1, first=0)
        check_tokens(size, other, [(size.depth, taught), *tokens])
        source = TeacherPass(teacher, normalization, tuple(t for _, t in tokens), (taught,))
        pixel = pixel_branch(encoder, self.decoder, self.norm_pix_loss, weight=1.0, neck=final_tokens(size, tap))
        mixer = HeadMixer(ExtraLogits(size.depth, size.width, size.heads), size.heads, other.heads_at(taught))
        attention = _match("attention", mixer, source.logits(taught), self.attention_weight)
        branches = [pixel, attention, *_hidden_branches(tokens, size, source, self.hidden_weight)]
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), branches, normalization)


def _hidden_branches(
    pairs: Sequence[tuple[int, int]], size: EncoderSize, source: TeacherPass, weight: float
) -> list[Branch]:
    other = source.teacher.config
    return [
        _match(
            f"hidden_{student}_{taught}",
            HiddenAdapter(student, size.width_at(student), other.width_at(taught)),
            source.hidden(taught),
            weight,
        )
        for student, taught in pairs
    ]


def _match(name: str, decoder: nn.Module, target: Derived, weight: float) -> Branch:
    return Branch(name, decoder, target, loss="mse", weight=weight, score="all")


def _checked(method: str, teacher: nn.Module | None) -> MaskedTeacher:
    if not isinstance(teacher, MaskedTeacher):
        raise UserError(
            f"method {method} needs a vision transformer as teacher; give --teacher NAME (a timm ViT), "
            "or --teacher checkpoint --teacher.path RUN"
        )
    return teacher


def _pairs(
    key: str, students: Sequence[int], teachers: Sequence[int], size: EncoderSize, other: EncoderSize, *, first: int
) -> list[tuple[int, int]]:
    """Student's and teacher's layers side by side, every one of them there. Raises UserError."""
    if len(students) != len(teachers):
        raise UserError(f"'{key}' names {len(students)} layers of the student and {len(teachers)} of the teacher")
    _within(key, students, "student", size.depth, first=first)
    _within(key, teachers, "teacher", other.depth, first=first)
    return list(zip(students, teachers, strict=True))


def _within(key: str, layers: Sequence[int], whose: str, last: int, *, first: int) -> None:
    for layer in layers:
        if not first <= layer <= last:
            raise UserError(f"'{key}': the {whose} has layers {first} to {last}, not {layer}")


def check_maps(size: EncoderSize, blocks: Sequence[int], whose: str) -> None:
    """Raises UserError on a block without one attention map over all tokens (early ones of a hierarchical encoder)."""
    for block in blocks:
        if not size.distils(block):
            known = ", ".join(str(number) for number in range(1, size.depth + 1) if size.distils(number))
            raise UserError(
                f"block {block} of {whose} ({size.name}) attends within mask units or pools, so there is no attention over "
                f"all tokens to match; name one of {known}"
            )


def check_tokens(size: EncoderSize, other: EncoderSize, pairs: Sequence[tuple[int, int]]) -> None:
    """Raises UserError on blocks of student and teacher after which a patch is another number of tokens."""
    for student, taught in pairs:
        ours, theirs = size.split_at(student), other.split_at(taught)
        if ours != theirs:
            raise UserError(
                f"a patch is {ours} x {ours} tokens after block {student} of the student and {theirs} x {theirs} after block "
                f"{taught} of the teacher; name blocks that match"
            )
