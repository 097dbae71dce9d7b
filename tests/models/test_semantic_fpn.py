"""Semantic-FPN on every encoder family: shapes, taps on their grid, windows, learning rates by layer."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgemim.edge.images import Preprocessing  # noqa: E402
from edgemim.edge.segmentation import slide_logits as edge_slide_logits  # noqa: E402
from edgemim.models.encoder import patchify  # noqa: E402
from edgemim.models.normalization import Normalization  # noqa: E402
from edgemim.models.semantic_fpn import SemanticFpn, SemanticFpnConfig, as_map, resized, slide_logits  # noqa: E402
from edgemim.models.sizes import SIZES, EncoderSize  # noqa: E402
from edgemim.training.optim import build_adamw  # noqa: E402

torch.set_num_threads(1)

FAMILIES = ("vit_nano", "vit_nano_rel", "hiera_micro_32")


def network(name: str, **head: object) -> SemanticFpn:
    torch.manual_seed(0)
    config = SemanticFpnConfig.model_validate({"channels": 8, "dropout": 0.0, **head})
    return SemanticFpn(SIZES[name].as_classifier(), config, 5).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_logit_for_each_class_and_pixel(name: str) -> None:
    model = network(name)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        coarse, full = model.coarse_logits(images), model(images)
    assert full.shape == (2, 5, 32, 32)
    assert coarse.shape[1] == 5 and coarse.shape[-1] in (16, 32)
    torch.testing.assert_close(full, resized(coarse, (32, 32)))
    other = images.clone()
    other[0, :, 20:] += 1
    with torch.inference_mode():
        assert not torch.allclose(model(other)[0], full[0]) and torch.allclose(model(other)[1], full[1], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_that_is_trained_gets_a_gradient(name: str) -> None:
    """Several processes would wait for one that gets none."""
    model = network(name).train()
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_levels_of_a_plain_vit_are_4_2_1_and_half_of_its_grid() -> None:
    model = network("vit_micro")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        levels = [level(x) for level, x in zip(model.pyramid, model.maps(images), strict=True)]
    assert [level.shape[-1] for level in levels] == [32, 16, 8, 4]
    assert all(level.shape[1] == 24 for level in levels)  # a quarter of the width


def test_levels_of_a_hierarchical_encoder_are_its_stages() -> None:
    config = SIZES["hiera_micro"].as_classifier()
    model = SemanticFpn(config, SemanticFpnConfig(), 5)
    with torch.inference_mode():
        maps = model.eval().maps(torch.randn(1, 3, 64, 64))
    assert model.taps == (1, 2, 4, 6)
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)]


@pytest.mark.parametrize("name", ["vit_nano", "hiera_micro_32"])
def test_a_map_has_each_token_where_its_patch_is(name: str) -> None:
    """A change of one patch's pixels shows in the embeddings at its place alone (nearly, where windows overlap)."""
    encoder = network(name).encoder
    images = torch.zeros(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 8:16, 24:32] = 1
    with torch.inference_mode():
        a, b = (as_map(encoder(x, taps=(0,)), 0, encoder.config) for x in (images, changed))
    moved = (a - b).abs().sum(1)[0]
    per = 32 // moved.shape[-1]
    inside = moved[8 // per : 16 // per, 24 // per : 32 // per]
    assert inside.min() > 0 and inside.sum() > 0.6 * moved.sum()
    assert patchify(images, 8).shape[1] == 16


def test_default_taps() -> None:
    head = SemanticFpnConfig()
    assert head.blocks(SIZES["vit_tiny"]) == (4, 6, 8, 12)
    assert head.blocks(SIZES["vit_b_24"]) == (8, 12, 16, 24)
    assert head.blocks(SIZES["hiera_tiny"]) == (1, 3, 10, 12)
    for taps in ((1, 2, 3), (1, 2, 3, 13), (3, 2, 1, 4), (0, 1, 2, 3)):
        with pytest.raises(ValueError, match="four ascending blocks of 1 to 12"):
            SemanticFpnConfig(taps=taps).blocks(SIZES["vit_tiny"])


def test_both_wings_lay_the_same_windows() -> None:
    model = network("vit_nano")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 57, 3)).astype(np.uint8)
    preprocessing = Preprocessing(image_size=32, crop_pct=1.0)
    normalization = Normalization(preprocessing.mean, preprocessing.std)
    images = normalization.apply(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    with torch.inference_mode():
        ours = slide_logits(model, images, 32, 20)[0].numpy()
        edge = edge_slide_logits(pixels, lambda x: model(torch.from_numpy(x)).numpy(), preprocessing, 20)
    np.testing.assert_allclose(ours, edge, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_learning_rates_fall_from_the_head_down(name: str) -> None:
    """mmsegmentation's rule: head and pyramid at 1, the last block at the decay, the embedding at decay^(depth + 1)."""
    model, decay = network(name), 0.8
    optimizer = build_adamw(
        model, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=decay, no_decay=tuple(model.no_weight_decay())
    )
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    depth = model.encoder.config.depth
    for n, scale in found.items():
        if n.startswith("encoder.vit.blocks."):
            expected = decay ** (depth - int(n.split(".")[3]))
        elif n.startswith(("encoder.vit.cls_token", "encoder.vit.pos_embed", "encoder.vit.patch_embed")):
            expected = decay ** (depth + 1)
        else:
            expected = 1.0
        assert scale == pytest.approx(expected), n
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert "encoder.vit.pos_embed" not in decayed and "head.classify.weight" in decayed


def test_unknown_families_are_told_apart() -> None:
    config: EncoderSize = SIZES["vit_nano"]
    assert SemanticFpn(config, SemanticFpnConfig(), 2).encoder.vit.norm.weight.requires_grad is False  # pyright: ignore
