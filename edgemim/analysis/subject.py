"""Frozen networks under one face: tokens between their blocks and attention inside them, whatever they are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.hiera import Hiera
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.models.encoder import Encoder
from edgemim.models.hiera import HieraEncoder
from edgemim.models.normalization import Normalization
from edgemim.models.weights import from_timm, load_encoder, read_facts, to_timm
from edgemim.tasks import load_task
from edgemim.tasks.task import Task

# Blocks whose first norm comes behind their attention: what enters them is looked at as it is.
_POST_NORM = {"ResPostBlock", "EvaBlockPostNorm"}
# timm's attentions whose dropout sees the softmax itself.
_ATTENTIONS = {"Attention", "AttentionRope", "EvaAttention"}


class Subject(ABC):
    """A frozen network that an analysis looks at; it owns its resize and normalisation.

    Attributes:
        name: what pictures call it.
        size: rows and columns of its input in pixels.
        layers: names of what `features` gives.
        what: how layers are counted, for an axis.
    """

    what = "after block (0: embeddings)"

    def __init__(self, network: nn.Module, name: str, size: tuple[int, int], normalization: Normalization) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.size, self.normalization = name, size, normalization
        self.layers: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Subject:
        """Move the network."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Float[Tensor, "b n c"]]:
        """Patch tokens of uint8 images [b, 3, h, w] at each layer, behind the norm that the network itself puts next."""
        return [tokens.float() for tokens in self._features(self._prepare(images))]

    @torch.no_grad()
    def attention(self, images: Tensor) -> dict[int, Float[Tensor, "b h t t"]]:
        """Pre-softmax logits by block, less a constant of each row.

        Raises:
            UserError: if the network is no vision transformer whose attention can be seen.
        """
        return self._attention(self._prepare(images))

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches that `attention` is over. Raises UserError as it does."""

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return 0

    @property
    def patch_px(self) -> float:
        """Pixels of the network's input from one patch to the next."""
        return self.size[0] / self.grid[0]

    def _prepare(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        if tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, size=self.size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return self.normalization.normalize(x)

    @abstractmethod
    def _features(self, x: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def _attention(self, x: Tensor) -> dict[int, Tensor]: ...


class PlainSubject(Subject):
    """A timm vision transformer of equal blocks: `VisionTransformer`, `Beit`, `Eva` and their kin."""

    def __init__(self, network: Any, name: str, normalization: Normalization) -> None:
        super().__init__(network, name, tuple(network.patch_embed.img_size), normalization)
        self._network = network
        self.layers = tuple(str(number) for number in range(len(network.blocks) + 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return tuple(self._network.patch_embed.grid_size)

    @property
    def prefix(self) -> int:
        """Class and register tokens."""
        return self._network.num_prefix_tokens

    def _features(self, x: Tensor) -> list[Tensor]:
        blocks, seen = self._network.blocks, []
        with ExitStack() as stack:
            for block in blocks:
                keep = block.register_forward_pre_hook(lambda module, given: seen.append(_entering(module, given[0])))
                stack.callback(keep.remove)
            stack.callback(
                blocks[-1].register_forward_hook(lambda *given: seen.append(self._final_norm(given[-1]))).remove
            )
            self._network.forward_features(x)
        return [tokens[:, self.prefix :] for tokens in seen]

    def _final_norm(self, tokens: Tensor) -> Tensor:
        # Classifiers of pooled tokens norm after pooling; the study norms the tokens with it.
        norms = (getattr(self._network, name, None) for name in ("norm", "fc_norm"))
        return next((norm for norm in norms if isinstance(norm, nn.Module) and not _idle(norm)), nn.Identity())(tokens)

    def _attention(self, x: Tensor) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            # Behind the softmax; its logarithm are the logits less a constant of the row. 0 has none: the least number.
            return lambda _, given: found.update({number: given[0].float().clamp(min=1e-38).log()})

        with ExitStack() as stack:
            for number, block in enumerate(self._network.blocks, start=1):
                attention = block.attn
                if type(attention).__name__ not in _ATTENTIONS or not isinstance(attention.attn_drop, nn.Module):
                    raise _no_attention(self.name, type(attention).__name__)
                stack.enter_context(_unfused(attention))
                stack.callback(attention.attn_drop.register_forward_pre_hook(keep(number)).remove)
            self._network.forward_features(x)
        return found


class HierarchicalSubject(Subject):
    """A `Hiera`: attention of those blocks alone that have one map over all patches."""

    def __init__(self, encoder: HieraEncoder, name: str, normalization: Normalization) -> None:
        side = encoder.config.image_size
        super().__init__(encoder, name, (side, side), normalization)
        self._encoder = encoder
        self.layers = tuple(str(number) for number in range(encoder.config.depth + 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches at the end."""
        return self._encoder.config.grid

    def _features(self, x: Tensor) -> list[Tensor]:
        taps = range(self._encoder.config.depth + 1)
        seen = self._encoder(x, taps=taps)
        return [seen.entering(tap) for tap in taps]

    def _attention(self, x: Tensor) -> dict[int, Tensor]:
        config = self._encoder.config
        whole = [block for block in range(1, config.depth + 1) if config.distils(block)]
        if not whole:
            raise _no_attention(self.name, "Hiera without a block over all patches")
        return dict(sorted(self._encoder(x, taps=(), attention=whole).attention.items()))


class StagedSubject(Subject):
    """Any other timm model with feature maps, a convolutional network say: a layer is a stage's map."""

    what = "stage"

    def __init__(self, network: Any, name: str, normalization: Normalization) -> None:
        size = getattr(network, "default_cfg", {}).get("input_size", (3, 224, 224))[-2:]
        super().__init__(network, name, tuple(size), normalization)
        self._network = network
        with torch.no_grad():
            maps = self._features(torch.zeros(1, 3, *self.size))
        self.layers = tuple(str(number) for number in range(1, len(maps) + 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Has none."""
        raise _no_attention(self.name, type(self._network).__name__)

    def _features(self, x: Tensor) -> list[Tensor]:
        maps = self._network.forward_intermediates(x, intermediates_only=True)
        return [each.flatten(2).transpose(1, 2) for each in maps]

    def _attention(self, x: Tensor) -> dict[int, Tensor]:
        raise _no_attention(self.name, type(self._network).__name__)


def subject_of(model: nn.Module, name: str, normalization: Normalization | None = None) -> Subject:
    """A subject of our encoder or of a timm model; its mean and deviation are timm's where none are given.

    Raises:
        UserError: if it shows nothing between its layers.
    """
    facts = getattr(model, "default_cfg", None) or {}
    own = Normalization(facts.get("mean", IMAGENET_DEFAULT_MEAN), facts.get("std", IMAGENET_DEFAULT_STD))
    normalization = normalization or own
    # A segmenter's head is left behind.
    inner: Any = getattr(model, "encoder", None)
    model = inner if isinstance(inner, Encoder) else model
    if isinstance(model, Hiera):
        model = from_timm(model)
    if isinstance(model, HieraEncoder):
        return HierarchicalSubject(model, name, normalization)
    if isinstance(model, Encoder):
        model = to_timm(model)
    if _is_plain(model):
        return PlainSubject(model, name, normalization)
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"{name} is a {type(model).__name__}, which shows no features between its layers; take another")
    return StagedSubject(model, name, normalization)


def subject_of_run(run: Path) -> Subject:
    """The network of a finished run, pre-trained or fine-tuned. Raises UserError if it holds none."""
    facts = read_facts(run)
    if facts["kind"] == "encoder":
        seen = facts.get("preprocessing", {})
        known = "mean" in seen and "std" in seen
        return subject_of(load_encoder(run), run.name, Normalization(seen["mean"], seen["std"]) if known else None)
    task: Task = load_task(run)
    return subject_of(task.model, run.name, task.normalization)


def _is_plain(model: Any) -> bool:
    """Whether it cuts the image once, into a grid, and goes on in equal blocks of attention."""
    if not (hasattr(model, "num_prefix_tokens") and hasattr(getattr(model, "patch_embed", None), "grid_size")):
        return False
    blocks = getattr(model, "blocks", ())
    return len(blocks) > 0 and all(hasattr(block, "attn") and hasattr(block, "norm1") for block in blocks)


def _entering(block: nn.Module, tokens: Tensor) -> Tensor:
    return tokens if type(block).__name__ in _POST_NORM else cast(nn.Module, block.norm1)(tokens)


def _idle(norm: nn.Module) -> bool:
    return isinstance(norm, nn.Identity)


@contextmanager
def _unfused(attention: Any) -> Iterator[None]:
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        yield
    finally:
        attention.fused_attn = fused


def _no_attention(name: str, kind: str) -> UserError:
    return UserError(
        f"{name} ({kind}) shows no attention over patches; give a vision transformer of timm's usual blocks"
    )
