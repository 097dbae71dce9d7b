"""One forward for masked and whole images: what is hidden stays hidden, and timm's own forward agrees."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NANO, NORMALIZATION, mask_of, nano_encoder, pixels

from edgemim.models.encoder import TokenMask, gather_tokens, patchify, unpatchify
from edgemim.models.sizes import VitConfig
from edgemim.models.weights import bare_vit


def images_of(count: int, seed: int = 0) -> torch.Tensor:
    return NORMALIZATION.apply(pixels(count, NANO.image_size, seed))


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_vit_tiny_has_the_published_size(pool: str) -> None:
    model = bare_vit(VitConfig(), num_classes=1000, global_pool=pool)
    assert sum(p.numel() for p in model.parameters()) == 5_717_416


@torch.no_grad()
def test_fifty_tokens_of_an_image_of_224_are_seen_at_the_published_ratio() -> None:
    size = VitConfig(depth=1)
    mask = mask_of(2, tokens=size.tokens, ratio=0.75)
    assert nano_encoder(size)(torch.zeros(2, 3, 224, 224), mask).last.shape == (2, 50, 192)


def test_whole_images_pass_as_in_timm() -> None:
    encoder = nano_encoder().eval()
    x = images_of(3)
    torch.testing.assert_close(encoder(x).last, encoder.vit.forward_features(x), rtol=1e-5, atol=1e-6)


def test_taps_are_what_timm_sees_between_blocks() -> None:
    encoder = nano_encoder().eval()
    x = images_of(2)
    features = encoder(x, taps=[1, 2])
    final, between = encoder.vit.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True)
    assert set(features.tokens) == {1, 2}
    for number, (patches, prefix) in enumerate(between, start=1):
        torch.testing.assert_close(features.tokens[number], torch.cat([prefix, patches], 1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features.normed(2), final, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features.pooled(2), final[:, 1:].mean(1), rtol=1e-5, atol=1e-6)


def test_visible_patches_alone_embed_as_among_all() -> None:
    encoder = nano_encoder()
    x, mask = images_of(4), mask_of(4)
    alone, whole = encoder(x, mask, taps=[0]), encoder(x, taps=[0])
    assert alone.tokens[0].shape == (4, 1 + 4, NANO.width)
    expected = gather_tokens(whole.tokens[0][:, 1:], mask.visible)
    torch.testing.assert_close(alone.tokens[0][:, 1:], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.tokens[0][:, :1], whole.tokens[0][:, :1])


def test_nothing_masked_is_the_whole_image() -> None:
    encoder = nano_encoder().eval()
    x, mask = images_of(2), mask_of(2, ratio=0.0)
    torch.testing.assert_close(encoder(x, mask).last, encoder(x).last, rtol=1e-4, atol=1e-5)


def test_hidden_pixels_change_nothing_visible_ones_do() -> None:
    encoder = nano_encoder().eval()
    x, mask = images_of(3), mask_of(3)
    hidden = mask.masked.view(-1, 1, *NANO.grid).repeat_interleave(8, 2).repeat_interleave(8, 3)
    before = encoder(x, mask).last
    assert torch.equal(encoder(torch.where(hidden, x + 3, x), mask).last, before)
    assert not torch.allclose(encoder(torch.where(hidden, x, x + 0.1), mask).last, before, atol=1e-3)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    encoder = nano_encoder().eval()
    x, mask = images_of(5), mask_of(5)
    whole = encoder(x, mask).last
    one = encoder(x[3:4], TokenMask(mask.masked[3:4], mask.visible[3:4])).last
    torch.testing.assert_close(one[0], whole[3], rtol=1e-5, atol=1e-6)


def test_fill_puts_the_mask_token_in_the_place_of_masked_patches() -> None:
    encoder = nano_encoder()
    x, mask = images_of(2), mask_of(2)
    token = torch.randn(1, 1, NANO.width)
    features = encoder(x, mask, taps=[0], fill=token)
    assert features.visible is None
    assert encoder.vit.pos_embed is not None
    positions = encoder.vit.pos_embed[:, 1:]
    embedded = encoder.vit.patch_embed(x)
    for row in range(2):
        for patch in range(NANO.tokens):
            expected = token[0, 0] if mask.masked[row, patch] else embedded[row, patch]
            torch.testing.assert_close(features.tokens[0][row, 1 + patch], expected + positions[0, patch])


def test_attention_logits_give_the_attention_that_the_block_applies() -> None:
    encoder = nano_encoder().eval()
    x = images_of(2)
    applied = []
    for block in encoder.vit.blocks:
        block.attn.fused_attn = False  # the slow way shows its probabilities
        block.attn.attn_drop.register_forward_hook(lambda _module, inputs, _output: applied.append(inputs[0]))
    features = encoder(x, attention=[1, 2])
    for number in (1, 2):
        logits = features.attention[number]
        assert logits.shape == (2, NANO.heads, 17, 17)
        torch.testing.assert_close(logits.softmax(-1), applied[number - 1], rtol=1e-5, atol=1e-6)


def test_blocks_behind_the_deepest_tap_are_not_run() -> None:
    encoder = nano_encoder()
    encoder.vit.blocks[1].register_forward_hook(lambda *_: pytest.fail("block 2 ran though nothing reads it"))
    x = images_of(1)
    assert set(encoder(x, taps=[1]).tokens) == {1}
    assert set(encoder(x, taps=[0], attention=[1]).attention) == {1}


def test_positions_are_fixed_and_everything_else_is_trained() -> None:
    encoder = nano_encoder()
    assert [name for name, p in encoder.named_parameters() if not p.requires_grad] == ["vit.pos_embed"]


def test_gradient_reaches_every_trainable_weight() -> None:
    encoder = nano_encoder()
    encoder(images_of(2), mask_of(2)).last.square().sum().backward()
    silent = [n for n, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []


def test_fresh_weights_are_drawn_as_in_mae() -> None:
    torch.manual_seed(0)
    from edgemim.models.encoder import Encoder

    encoder = Encoder(VitConfig(width=96, depth=2, heads=3))
    for name, p in encoder.vit.named_parameters():
        if name.endswith(".bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert torch.equal(p, torch.ones_like(p)), name
        elif p.ndim == 2:
            bound = (6 / sum(p.shape)) ** 0.5  # Xavier-uniform
            assert 0.95 * bound < p.abs().max() <= bound, name
    patch = encoder.vit.patch_embed.proj.weight
    bound = (6 / (96 + 3 * 16 * 16)) ** 0.5
    assert 0.95 * bound < patch.abs().max() <= bound


def slow_patches(images: torch.Tensor, size: int) -> torch.Tensor:
    """Patches number by number: rows of patches, inside them rows, columns, channels."""
    b, c, h, w = images.shape
    rows = []
    for image in images:
        for top in range(0, h, size):
            for left in range(0, w, size):
                block = image[:, top : top + size, left : left + size]
                rows.append([float(block[k, i, j]) for i in range(size) for j in range(size) for k in range(c)])
    return torch.tensor(rows).view(b, -1, c * size * size)


def test_patchify_against_loops_and_back() -> None:
    images = torch.randn(2, 3, 6, 9)
    patches = patchify(images, 3)
    torch.testing.assert_close(patches, slow_patches(images, 3))
    assert torch.equal(unpatchify(patches, 3, (2, 3)), images)
    first = patchify(images, 3, channels_first=True)
    assert torch.equal(first.view(2, 6, 3, 9).transpose(2, 3).reshape(2, 6, 27), patches)


def test_token_mask_of_a_boolean_tensor() -> None:
    masked = torch.tensor([[True, False, True, False], [False, False, True, True]])
    mask = TokenMask.of(masked)
    assert mask.visible.tolist() == [[1, 3], [0, 1]]
    with pytest.raises(ValueError, match="same number"):
        TokenMask.of(torch.tensor([[True, False], [True, True]]))
