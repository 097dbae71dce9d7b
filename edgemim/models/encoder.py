"""One forward for plain vision transformers: only visible patches are embedded, tokens are tapped after named blocks.

timm's `VisionTransformer` holds the weights under timm's names; its blocks and norm are called, none is written again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from edgemim.models.position import sincos_positions
from edgemim.models.sizes import VitConfig


@dataclass(frozen=True)
class TokenMask:
    """Which patches are hidden: True = masked, everywhere, the same count in each row (static shapes).

    Attributes:
        masked: [b, n] over the patch grid, row-major.
        visible: [b, v] grid positions of the visible tokens in grid order; the same fact, kept beside it so that no
            step has to ask the device how many there are.
    """

    masked: Bool[Tensor, "b n"]
    visible: Int[Tensor, "b v"]

    @staticmethod
    def of(masked: Bool[Tensor, "b n"]) -> TokenMask:
        """Make one from a Boolean tensor (waits for the device once). Raises ValueError on unequal counts."""
        counts = (~masked).sum(1)
        if bool((counts != counts[0]).any()):
            raise ValueError("a mask needs the same number of masked patches in each row")
        order = masked.to(torch.uint8).argsort(dim=1, stable=True)
        return TokenMask(masked, order[:, : int(counts[0])])


@dataclass(frozen=True)
class Features:
    """What an encoder saw: tokens after named blocks, and attention logits where they were asked for.

    Attributes:
        tokens: block number (0 = embeddings, 1-based after blocks) to [b, prefix + visible, width], as the block left
            them. Visible tokens stay in grid order.
        attention: block number to pre-softmax scaled logits q k^T / sqrt(d), [b, heads, tokens, tokens].
        grid: rows and columns of the patch grid.
        prefix: number of class tokens in front.
        visible: [b, visible] grid positions of the visible tokens, None if all are.
        norm: the encoder's final norm.
        block_norms: the first norm of each block.
    """

    tokens: dict[int, Float[Tensor, "b t width"]]
    attention: dict[int, Float[Tensor, "b heads t t"]]
    grid: tuple[int, int]
    prefix: int
    visible: Int[Tensor, "b v"] | None
    norm: Callable[[Tensor], Tensor]
    block_norms: tuple[Callable[[Tensor], Tensor], ...] = ()

    def normed(self, tap: int) -> Float[Tensor, "b t width"]:
        """Tokens of a tap behind the encoder's final norm."""
        return self.norm(self.tokens[tap])

    def entering(self, tap: int) -> Float[Tensor, "b t width"]:
        """Tokens of a tap behind the norm that the network itself puts next: block tap + 1's first, or the final one."""
        return self.block_norms[tap](self.tokens[tap]) if tap < len(self.block_norms) else self.normed(tap)

    @property
    def last(self) -> Float[Tensor, "b t width"]:
        """Tokens of the deepest tap behind the final norm."""
        return self.normed(max(self.tokens))

    def pooled(self, tap: int) -> Float[Tensor, "b width"]:
        """Mean of a tap's patch tokens behind the final norm: an image's feature vector."""
        return self.normed(tap)[:, self.prefix :].mean(1)


class Encoder(nn.Module):
    """A plain ViT with fixed 2-D sine-cosine positions and, given a mask, only the visible patches in its blocks."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            num_classes=0,
            global_pool="",
        )
        self.initialise()

    def initialise(self) -> None:
        """Draw the weights as MAE does: Xavier-uniform matrices, zero biases, N(0, 0.02) class token, fixed positions."""
        self.vit.apply(initialise_linear)
        patch = self.vit.patch_embed.proj
        nn.init.xavier_uniform_(patch.weight.view(patch.weight.shape[0], -1))
        assert patch.bias is not None and self.vit.cls_token is not None
        nn.init.zeros_(patch.bias)
        nn.init.normal_(self.vit.cls_token, std=0.02)
        if self.vit.pos_embed is not None:
            table = sincos_positions(self.config.width, self.config.grid, prefix=1)
            with torch.no_grad():
                self.vit.pos_embed.copy_(table)
            self.vit.pos_embed.requires_grad_(False)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        mask: TokenMask | None = None,
        *,
        taps: Collection[int] | None = None,
        attention: Collection[int] = (),
        fill: Float[Tensor, "1 1 width"] | None = None,
    ) -> Features:
        """Encode normalised images; masked patches are dropped before they are embedded, or replaced by `fill`.

        Args:
            images: [b, 3, image_size, image_size], normalised.
            mask: which patches to hide; None sees all.
            taps: blocks whose tokens are wanted, 0 for the embeddings; default the last one.
            attention: blocks whose attention logits are wanted.
            fill: a mask token: then every patch passes through the blocks, masked ones as this token (SimMIM, BEiT).
        """
        wanted = {len(self.vit.blocks)} if taps is None else set(taps)
        visible = mask.visible if mask is not None and fill is None else None
        x = self._embed(images, visible, mask, fill)
        tokens = {0: x} if 0 in wanted else {}
        logits: dict[int, Tensor] = {}
        # Blocks behind the deepest that is wanted are not run; one of which only the logits are wanted stops at them.
        deepest = max({0, *wanted})
        blocks = zip(self.vit.blocks, self._biases(visible), strict=True)
        for number, (block, bias) in enumerate(islice(blocks, max({deepest, *attention})), start=1):
            if number in attention:
                logits[number] = self._logits(block, x, bias)
            if number > deepest and number == max(attention):
                break
            x = self._run(block, x, bias)
            if number in wanted:
                tokens[number] = x
        norms = tuple(block.norm1 for block in self.vit.blocks)
        return Features(tokens, logits, self.config.grid, 1, visible, self.vit.norm, norms)  # pyright: ignore[reportArgumentType]

    def _biases(self, visible: Int[Tensor, "b v"] | None) -> Sequence[Tensor | None]:
        """What each block adds to its logits beside q k^T: nothing, in a plain ViT."""
        return [None] * self.config.depth

    def _logits(self, block: nn.Module, x: Tensor, bias: Tensor | None) -> Float[Tensor, "b heads t t"]:
        assert isinstance(block, Block)
        return attention_logits(block.attn, block.norm1(x))

    def _run(self, block: nn.Module, x: Tensor, bias: Tensor | None) -> Float[Tensor, "b t width"]:
        return block(x)

    def _embed(
        self, images: Tensor, visible: Tensor | None, mask: TokenMask | None, fill: Tensor | None
    ) -> Float[Tensor, "b t width"]:
        projection, positions = self.vit.patch_embed.proj, self.vit.pos_embed
        assert self.vit.cls_token is not None
        if visible is None:
            x = self.vit.patch_embed(images)
            if mask is not None and fill is not None:
                x = torch.where(mask.masked.unsqueeze(-1), fill.to(x.dtype), x)
            x = x if positions is None else x + positions[:, 1:]
        else:
            # The patch convolution as a matrix on the kept patches alone: 75 % of its work is never done.
            patches = gather_tokens(patchify(images, self.config.patch_size, channels_first=True), visible)
            x = F.linear(patches, projection.weight.flatten(1), projection.bias)
            if positions is not None:
                x = x + gather_tokens(positions[:, 1:].expand(len(x), -1, -1), visible)
        prefix = self.vit.cls_token if positions is None else self.vit.cls_token + positions[:, :1]
        prefix = prefix.expand(x.shape[0], -1, -1)  # not len(x), which an exported graph would keep
        return torch.cat([prefix, x], dim=1)


def attention_logits(attention: nn.Module, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b heads t t"]:
    """Pre-softmax logits q k^T / sqrt(d) of a timm attention on normed tokens.

    Fused kernels hide them, so q and k of this one block are computed twice; all other blocks stay fused.
    """
    assert isinstance(attention, Attention)
    b, t, _ = x.shape
    qkv = attention.qkv(x).reshape(b, t, 3, attention.num_heads, attention.head_dim)
    q, k = (attention.q_norm(qkv[:, :, 0].transpose(1, 2)), attention.k_norm(qkv[:, :, 1].transpose(1, 2)))
    return (q * attention.scale) @ k.transpose(-2, -1)


def gather_tokens(x: Float[Tensor, "b n d"], index: Int[Tensor, "b v"]) -> Float[Tensor, "b v d"]:
    """Pick tokens by position, a row of positions for each sample."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def patchify(
    images: Float[Tensor, "b c h w"], patch_size: int, *, channels_first: bool = False
) -> Float[Tensor, "b n d"]:
    """Cut images into patches, row-major; numbers inside a patch go (row, column, channel) or (channel, row, column)."""
    b, c, h, w = images.shape
    rows, columns = h // patch_size, w // patch_size
    cut = images.reshape(b, c, rows, patch_size, columns, patch_size)
    order = (0, 2, 4, 1, 3, 5) if channels_first else (0, 2, 4, 3, 5, 1)
    return cut.permute(order).reshape(b, rows * columns, c * patch_size**2)


def unpatchify(
    patches: Float[Tensor, "b n d"], patch_size: int, grid: tuple[int, int], *, channels_first: bool = False
) -> Float[Tensor, "b c h w"]:
    """Inverse of `patchify`."""
    (rows, columns), b = grid, len(patches)
    if channels_first:
        patches = patches.unflatten(-1, (-1, patch_size**2)).transpose(-1, -2)
    cut = patches.reshape(b, rows, columns, patch_size, patch_size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * patch_size, columns * patch_size)


def initialise_linear(module: nn.Module) -> None:
    """MAE's initialisation of linear and normalisation layers; apply to a module tree."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
