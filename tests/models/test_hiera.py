"""The hierarchical encoder: timm's tokens in grid order, mask units that are really gone, and published counts."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from edgemim.models.build import build_encoder
from edgemim.models.encoder import TokenMask
from edgemim.models.hiera import HieraEncoder, bare_hiera
from edgemim.models.sizes import SIZES, HieraConfig
from edgemim.models.weights import bare_vit, from_timm, to_timm
from edgemim.teachers.teacher import build_teacher

SMALL = HieraConfig(embed_dim=8, stages=(1, 1, 2, 2), patch_stride=2, patch_kernel=3, image_size=64)
DEPTH = SMALL.depth
UNITS, SIDE = 16, 4


def hiera(q_pool: int = 2) -> HieraEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(SMALL.model_copy(update={"q_pool": q_pool}))
    assert isinstance(encoder, HieraEncoder)
    return encoder.eval()


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def kept_units(count: int, kept: int = 5) -> Tensor:
    """True = kept, as timm has it."""
    noise = torch.rand(count, UNITS, generator=torch.Generator().manual_seed(2))
    return torch.zeros(count, UNITS, dtype=torch.bool).scatter(1, noise.argsort(1)[:, :kept], True)


def mask_of(keep: Tensor, unit: int) -> TokenMask:
    coarse = ~keep.view(-1, SIDE, SIDE)
    return TokenMask.of(coarse.repeat_interleave(unit, 1).repeat_interleave(unit, 2).flatten(1))


def in_space(tokens: Tensor, split: int, grid: tuple[int, int]) -> Tensor:
    """[b, n * split^2, c], patch by patch, as [b, rows, columns, c] of single tokens."""
    b, _, c = tokens.shape
    cut = tokens.view(b, *grid, split, split, c).transpose(2, 3)
    return cut.reshape(b, grid[0] * split, grid[1] * split, c)


@pytest.mark.parametrize("q_pool", [1, 2, 3])
def test_tokens_are_timms_in_grid_order(q_pool: int) -> None:
    encoder, x = hiera(q_pool), images_of(2)
    between = encoder.vit.forward_intermediates(x, coarse=False, output_fmt="NHWC", intermediates_only=True)
    features = encoder(x, taps=range(DEPTH + 1))
    for tap in range(1, DEPTH + 1):
        ours = in_space(features.tokens[tap], encoder.config.split_at(tap), encoder.config.grid)
        assert torch.equal(ours, between[tap - 1])
    patches = encoder.vit.patch_embed(x) + encoder.vit.pos_embed
    embedded = in_space(features.tokens[0], encoder.config.split_at(0), encoder.config.grid)
    torch.testing.assert_close(embedded.flatten(1, 2), patches, rtol=0, atol=0)


@pytest.mark.parametrize("q_pool", [1, 2, 3])
def test_visible_units_are_timms_with_its_inverted_mask(q_pool: int) -> None:
    encoder, x, keep = hiera(q_pool), images_of(3), kept_units(3)
    config = encoder.config
    mask = mask_of(keep, config.unit)
    assert torch.equal(encoder.units_kept(mask), keep)
    between = encoder.vit.forward_intermediates(x, keep, coarse=False, output_fmt="NHWC", intermediates_only=True)
    features = encoder(x, mask, taps=range(1, DEPTH + 1))
    assert torch.equal(features.visible, mask.visible)
    for tap in range(1, DEPTH + 1):
        split, width = config.split_at(tap), config.width_at(tap)
        side = config.unit * split
        # timm gives the kept units one by one: put back on an empty canvas, in space, then read patch by patch.
        canvas = torch.zeros(3, UNITS, side, side, width)
        canvas[keep] = between[tap - 1].reshape(-1, side, side, width)
        space = canvas.view(3, SIDE, SIDE, side, side, width).transpose(2, 3)
        cut = space.reshape(3, config.grid[0], split, config.grid[1], split, width).transpose(2, 3)
        expected = cut.reshape(3, config.tokens, -1)[~mask.masked]
        assert torch.equal(features.tokens[tap], expected.view(3, -1, width))


def test_masked_pixels_change_nothing_and_visible_ones_do() -> None:
    encoder, x = hiera(), images_of(2)
    mask = mask_of(kept_units(2), encoder.config.unit)
    hidden = mask.masked.view(-1, 1, *encoder.config.grid).repeat_interleave(8, 2).repeat_interleave(8, 3)
    before = encoder(x, mask).last
    # The embedding's windows overlap: hidden pixels at the border of a kept unit must not leak into it.
    assert torch.equal(encoder(torch.where(hidden, x + 3, x), mask).last, before)
    assert not torch.allclose(encoder(torch.where(hidden, x, x + 0.1), mask).last, before, atol=1e-3)


def test_a_sample_does_not_depend_on_the_masks_of_its_batch() -> None:
    encoder, x = hiera(), images_of(4)
    mask = mask_of(kept_units(4), encoder.config.unit)
    whole = encoder(x, mask, attention=[DEPTH])
    one = encoder(x[2:3], TokenMask(mask.masked[2:3], mask.visible[2:3]), attention=[DEPTH])
    torch.testing.assert_close(one.last[0], whole.last[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.attention[DEPTH][0], whole.attention[DEPTH][2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_logits_give_what_the_block_adds(masked: bool) -> None:
    """softmax(logits) times the values, through the block's own projection, is what its attention returns."""
    encoder, x = hiera(), images_of(2)
    mask = mask_of(kept_units(2), encoder.config.unit) if masked else None
    blocks = [block for block in range(1, DEPTH + 1) if encoder.config.distils(block)]
    assert blocks == [4, 5, 6]
    returned = {}
    for block in blocks:
        encoder.vit.blocks[block - 1].attn.register_forward_hook(
            lambda _module, _inputs, output, block=block: returned.__setitem__(block, output)
        )
    features = encoder(x, mask, taps=[block - 1 for block in blocks] + [DEPTH], attention=blocks)
    for block in blocks:
        layer = encoder.vit.blocks[block - 1]
        tokens = layer.norm1(features.tokens[block - 1])
        count, heads = tokens.shape[1], layer.attn.heads
        assert features.attention[block].shape == (2, heads, count, count)
        values = layer.attn.qkv(tokens).chunk(3, dim=-1)[2].unflatten(-1, (heads, -1)).transpose(1, 2)
        mixed = (features.attention[block].softmax(-1) @ values).transpose(1, 2).flatten(2)
        ours = layer.attn.proj(mixed)
        # The block's own stands in timm's order: the same rows, so the same sorted numbers of each channel.
        expected = returned[block].sort(1).values
        torch.testing.assert_close(ours.sort(1).values, expected, rtol=1e-4, atol=1e-5)


def test_what_it_does_not_have_is_refused() -> None:
    encoder, x = hiera(), images_of(1)
    with pytest.raises(ValueError, match="attention map"):
        encoder(x, attention=[1])
    with pytest.raises(ValueError, match="mask token"):
        encoder(x, mask_of(kept_units(1), 2), fill=torch.zeros(1, 1, encoder.config.width))


def test_blocks_behind_the_deepest_tap_are_not_run() -> None:
    encoder = hiera()
    encoder.vit.blocks[-1].register_forward_hook(lambda *_: pytest.fail("the last block ran though nothing reads it"))
    features = encoder(images_of(1), taps=[1], attention=[DEPTH])
    assert set(features.tokens) == {1} and set(features.attention) == {DEPTH}


def test_every_block_can_be_pooled_into_a_feature_vector() -> None:
    encoder, x = hiera(), images_of(2)
    features = encoder(x, taps=[1, DEPTH])
    early = torch.nn.functional.layer_norm(features.tokens[1], (8,), eps=1e-6).mean(1)
    torch.testing.assert_close(features.pooled(1), early)
    assert features.pooled(DEPTH).shape == (2, 64)
    torch.testing.assert_close(features.pooled(DEPTH), encoder.vit.head.norm(features.tokens[DEPTH]).mean(1))


def test_gradient_reaches_every_weight() -> None:
    encoder = hiera().train()
    encoder(images_of(2), mask_of(kept_units(2), 2)).last.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_published_counts_and_timms_names() -> None:
    """6,694,966 parameters with a 1000-way head, of which 144,256 are positions (arXiv 2404.12210, its code)."""
    size = SIZES["hiera_tiny"].as_classifier()
    model = bare_vit(size, num_classes=1000)
    counts = {name: p.numel() for name, p in model.named_parameters()}
    assert (sum(counts.values()), counts["pos_embed"]) == (6_694_966, 144_256)
    peer = timm.create_model("hiera_tiny_224", embed_dim=46, stages=(1, 2, 7, 2))
    peer.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(model.eval()(x), peer.eval()(x))


def test_an_encoder_goes_to_timm_and_back() -> None:
    encoder, x = hiera(), images_of(2)
    model = to_timm(encoder)
    assert torch.equal(model.eval().forward_features(x), encoder.vit.forward_features(x))
    again = from_timm(model)
    assert again.config == encoder.config
    assert torch.equal(again.eval()(x).last, encoder(x).last)
    as_classifier = bare_hiera(SMALL.as_classifier(), num_classes=3)
    assert from_timm(as_classifier).config.q_pool == 3
    assert from_timm(as_classifier, q_pool=2).config == SMALL


def test_fresh_weights_are_drawn_as_in_hieras_mae() -> None:
    encoder = build_encoder(HieraConfig(embed_dim=16, stages=(1, 1, 1, 1)))
    for name, p in encoder.vit.named_parameters():
        if name.endswith(".bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert torch.equal(p, torch.ones_like(p)), name
        elif p.ndim == 2:
            bound = (6 / sum(p.shape)) ** 0.5  # Xavier-uniform
            assert 0.95 * bound < p.abs().max() <= bound, name
    patch = encoder.vit.patch_embed.proj.weight
    bound = (6 / (16 + 3 * 7 * 7)) ** 0.5
    assert 0.95 * bound < patch.abs().max() <= bound
    assert 0.015 < encoder.vit.pos_embed.std() < 0.025


def test_a_pre_trained_one_teaches_features_on_its_own_grid() -> None:
    """Strides and input size, which timm knows of its own sizes alone, are those of the configuration."""
    encoder = hiera()
    teacher = build_teacher(to_timm(encoder), "own", image_size=64, student_grid=(8, 8), stage=None, input_size=None)
    x = torch.rand(2, 3, 64, 64)
    normalised = (x - teacher.mean) / teacher.std
    torch.testing.assert_close(teacher(x), encoder(normalised).tokens[DEPTH], rtol=1e-4, atol=1e-5)
    coarser = build_teacher(to_timm(encoder), "own", image_size=64, student_grid=(16, 16), stage=None, input_size=None)
    assert coarser.channels == 16
    torch.testing.assert_close(
        in_space(encoder(normalised, taps=[2]).tokens[2], 2, (8, 8)).flatten(1, 2), coarser(x), rtol=1e-4, atol=1e-5
    )
