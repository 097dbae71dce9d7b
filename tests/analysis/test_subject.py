"""Subjects of every kind: what hooks see equals what the encoder itself gives, for timm's families too."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import timm  # noqa: E402
from tiny_training import NORMALIZATION, nano_encoder, pixels  # noqa: E402
from torch import nn  # noqa: E402

from edgemim.analysis.subject import subject_of, subject_of_run  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.build import build_encoder  # noqa: E402
from edgemim.models.sizes import SIZES, RelativeVitConfig, VitConfig  # noqa: E402
from edgemim.models.weights import save_model  # noqa: E402

SMALL = {"width": 24, "depth": 2, "heads": 3, "patch_size": 8, "image_size": 32}


@pytest.mark.parametrize("config", [VitConfig(**SMALL), RelativeVitConfig(**SMALL)], ids=["plain", "relative"])
def test_hooks_see_what_the_encoder_gives(config: VitConfig) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    images = pixels(3)
    subject = subject_of(encoder, "own", NORMALIZATION)
    assert (subject.grid, subject.prefix, subject.patch_px, subject.layers) == ((4, 4), 1, 8.0, ("0", "1", "2"))
    with torch.no_grad():
        expected = encoder(NORMALIZATION.apply(images), taps=(0, 1, 2), attention=(1, 2))
    for tap, tokens in enumerate(subject.features(images)):
        assert torch.allclose(tokens, expected.entering(tap)[:, 1:], atol=1e-5)
    for block, logits in subject.attention(images).items():
        assert torch.allclose(logits.softmax(-1), expected.attention[block].softmax(-1), atol=1e-6)
    assert all(block.attn.fused_attn for block in subject.network.blocks)  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("test_vit", 1),
        ("deit_tiny_distilled_patch16_224", 2),
        ("vit_little_patch16_reg1_gap_256", 1),
        ("eva02_tiny_patch14_224", 1),
    ],
)
def test_timms_vision_transformers(name: str, prefix: int) -> None:
    torch.manual_seed(0)
    subject = subject_of(timm.create_model(name), name)
    images = pixels(1, 64)  # resized to the network's own input
    tokens, maps = subject.features(images), subject.attention(images)
    count = subject.grid[0] * subject.grid[1]
    assert subject.prefix == prefix
    assert len(tokens) == len(subject.layers) == len(maps) + 1
    assert all(each.shape[1] == count for each in tokens)
    for logits in maps.values():
        assert logits.shape[-2:] == (count + prefix, count + prefix)
        assert torch.allclose(logits.exp().sum(-1), torch.ones(()), atol=1e-4)


def test_a_hierarchical_one_shows_the_blocks_over_all_patches() -> None:
    encoder = build_encoder(SIZES["hiera_micro_32"])
    subject = subject_of(encoder, "hiera", NORMALIZATION)
    images = pixels(2)
    assert [tokens.shape[-1] for tokens in subject.features(images)] == [16, 16, 32, 64, 64, 128, 128]
    whole = [block for block in range(1, 7) if encoder.config.distils(block)]
    assert list(subject.attention(images)) == whole and whole
    assert subject.attention(images)[whole[0]].shape[-1] == encoder.config.tokens


def test_a_convolutional_network_has_stages_and_no_attention() -> None:
    subject = subject_of(timm.create_model("test_efficientnet"), "net")
    images = pixels(2, 64)
    assert len(subject.features(images)) == len(subject.layers) >= 4
    with pytest.raises(UserError, match=r"net \(EfficientNet\) shows no attention over patches") as caught:
        subject.attention(images)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no attention"):
        _ = subject.grid


def test_a_network_that_shows_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="shows no features between its layers"):
        subject_of(nn.Sequential(nn.Flatten()), "flat")


def test_runs_pretrained_and_finetuned(tmp_path: Path) -> None:
    encoder = nano_encoder()
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    facts = {"kind": "encoder", "encoder": encoder.config.model_dump(), "preprocessing": {"image_size": 32, **own}}
    save_model(tmp_path / "pre" / "model", encoder.vit.state_dict(), facts)
    subject = subject_of_run(tmp_path / "pre")
    assert (subject.name, tuple(subject.normalization.mean)) == ("pre", (0.1, 0.2, 0.3))
    with torch.no_grad():
        expected = encoder.eval()(subject.normalization.apply(pixels(2))).last[:, 1:]
    assert torch.allclose(subject.features(pixels(2))[-1], expected, atol=1e-5)
