"""Published tensors become encoders that compute what the published network does."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import timm  # noqa: E402
from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert import FAMILIES, Converted, convert_weights, read_published  # noqa: E402
from edgemim.models.sizes import RelativeVitConfig, VitConfig  # noqa: E402

SMALL = {"width": 16, "heads": 2, "patch_size": 4, "image_size": 16}
# Case, family, depth.
CASES = [
    ("mae", "mae", 2),
    ("mae", "mae-lite", 2),
    ("d_mae", "mae-lite", 2),
    ("d2_mae", "mae-lite", 2),
    ("deepmim", "deepmim", 4),
    ("mirl", "mirl", 6),
    ("mff", "mff", 6),
    ("mocov3", "mocov3", 1),
    ("vit_finetune", "mae", 2),
]


def converted(case: str, family: str, heads: int | None = 2, **changes: torch.Tensor) -> Converted:
    return convert_weights(FAMILIES[family], {**weights_of(case), **changes}, heads)


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("case", "family", "depth"), CASES)
def test_sizes_come_from_the_tensors_and_every_tensor_is_accounted_for(case: str, family: str, depth: int) -> None:
    found = converted(case, family)
    assert found.encoder.config == VitConfig(**SMALL, depth=depth)
    assert [fate.key for fate in found.fates] == list(weights_of(case))
    for fate in found.fates:
        assert fate.becomes is not None or fate.note, fate
    used = {fate.becomes for fate in found.fates} - {None}
    assert used | set(found.new) == set(found.encoder.vit.state_dict())
    with torch.no_grad():
        assert torch.isfinite(found.encoder(images(16)).last).all()


def test_simmims_encoder_has_shared_relative_positions_and_tells_its_heads() -> None:
    found = converted("simmim_vit", "simmim", None)
    config = found.encoder.config
    assert isinstance(config, RelativeVitConfig)
    assert (config.heads, config.offsets, config.absolute_positions, config.key_bias) == (2, "shared", False, False)
    assert config.image_size == 16
    assert "from the table of relative positions" in found.notes[0]
    assert torch.equal(found.encoder.vit.blocks[1].gamma_1, weights_of("simmim_vit")["encoder.blocks.1.gamma_1"])
    with pytest.raises(UserError, match="for 2 heads; leave --heads 4 out"):
        converted("simmim_vit", "simmim", 4)


def test_deits_network_and_ours_give_the_same_tokens() -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    torch.nn.init.normal_(model.pos_embed, std=0.3)
    found = convert_weights(FAMILIES["deit"], model.state_dict())
    assert found.encoder.config == VitConfig(heads=3)  # 64 channels a head, as timm's
    assert set(found.classifier) == {"head.weight", "head.bias"}
    assert any("learnt" in note for note in found.notes)
    with torch.no_grad():
        x = images(224)
        torch.testing.assert_close(found.encoder(x).last, model.forward_features(x), rtol=1e-4, atol=1e-5)


def test_paddles_network_computed_from_its_own_layout() -> None:
    """The first block of MIRL by hand, y = x W + b on the file's [in, out] matrices."""
    weights = weights_of("mirl")
    found = converted("mirl", "mirl").encoder
    x = images(16, 1)
    with torch.no_grad():
        tokens = found(x, taps=[0, 1]).tokens
        prefix = "blocks.0."
        part = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

        def linear(name: str, value: torch.Tensor) -> torch.Tensor:
            return value @ part[f"{name}.weight"] + part[f"{name}.bias"]

        def norm(name: str, value: torch.Tensor) -> torch.Tensor:
            centred = value - value.mean(-1, keepdim=True)
            scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            return scaled * part[f"{name}.weight"] + part[f"{name}.bias"]

        y = tokens[0]
        q, k, v = linear("attn.qkv", norm("norm1", y)).chunk(3, dim=-1)
        mixed = []
        for head in range(2):
            cut = slice(8 * head, 8 * head + 8)
            mixed.append((q[..., cut] @ k[..., cut].transpose(1, 2) / 8**0.5).softmax(-1) @ v[..., cut])
        y = y + linear("attn.proj", torch.cat(mixed, dim=-1))
        y = y + linear("mlp.fc2", torch.nn.functional.gelu(linear("mlp.fc1", norm("norm2", y))))
        torch.testing.assert_close(tokens[1], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "family", "words"),
    [
        ("mae", "mae", "column in the first half"),
        ("mff", "mff", "row in the first half"),
        ("mocov3", "mocov3", "row in the first half"),
        ("vit_finetune", "mae", "learnt"),
    ],
)
def test_a_position_table_is_carried_and_named(case: str, family: str, words: str) -> None:
    found = converted(case, family)
    table = next(value for key, value in weights_of(case).items() if key.endswith("pos_embed") and "decoder" not in key)
    assert torch.equal(found.encoder.vit.pos_embed, table)
    assert any(words in note for note in found.notes)


@pytest.mark.parametrize(
    ("family", "width", "heads"),
    [
        ("mae-lite", 192, 12),
        ("mae-lite", 384, 12),
        ("mae", 1024, 16),
        ("mae", 1280, 16),
        ("mae", 192, None),
        ("mocov3", 384, 12),
        ("mirl", 384, 12),
        ("deit", 192, 3),
        ("dino", 384, 6),
        ("mff", 768, 12),
        ("timm", 100, None),
    ],
)
def test_heads_by_family_and_width(family: str, width: int, heads: int | None) -> None:
    assert FAMILIES[family].heads(width) == heads


def test_heads_that_no_convention_tells_are_asked_for() -> None:
    with pytest.raises(UserError, match="16 wide, a width that mae did not publish: give --heads N"):
        converted("mae", "mae", None)
    with pytest.raises(UserError, match="width 16 is not a multiple of heads 3"):
        converted("mae", "mae", 3)


def test_a_file_fine_tuned_on_pooled_tokens_has_no_norm_of_tokens() -> None:
    found = converted("vit_finetune", "mae")
    assert found.new == ("norm.weight", "norm.bias")
    assert torch.equal(found.encoder.vit.norm.weight, torch.ones(16))
    assert any("no norm of the tokens" in note for note in found.notes)
    kept = {fate.key: fate.becomes for fate in found.fates_with_head()}
    assert kept["head.weight"] == "head.weight" and kept["fc_norm.bias"] == "fc_norm.bias"


def test_half_precision_becomes_single() -> None:
    weights = {key: value.half() for key, value in weights_of("mae").items()}
    found = convert_weights(FAMILIES["mae"], weights, 2)
    assert all(value.dtype == torch.float32 for value in found.encoder.state_dict().values())


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match=r"not finite \(in blocks\.1\.norm1\.weight\): a damaged file"):
        converted("mae", "mae", **{"blocks.1.norm1.weight": torch.full((16,), float("nan"))})


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("cls_token", "holds no cls_token"),
        ("blocks.1.mlp.fc2.bias", r"blocks\.1\.mlp\.fc2\.bias is missing"),
        ("norm.weight", r"norm\.weight is missing"),
        ("pos_embed", "holds no position table"),
        ("patch_embed.proj.weight", r"holds no patch_embed\.proj\.weight"),
    ],
)
def test_a_truncated_state_dict_names_what_it_lacks(lost: str, words: str) -> None:
    weights = weights_of("mae")
    del weights[lost]
    with pytest.raises(UserError, match=words):
        convert_weights(FAMILIES["mae"], weights, 2)


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("pos_embed", (1, 19, 16), "19 rows in its position table"),
        ("patch_embed.proj.weight", (16, 1, 4, 4), "patches of 1 x 4 x 4"),
        ("patch_embed.proj.weight", (16, 3, 4, 2), "patches of 3 x 4 x 2"),
        ("blocks.1.norm1.weight", (15,), r"blocks\.1\.norm1\.weight has shape \(15,\)"),
    ],
)
def test_odd_shapes_are_refused(key: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        converted("mae", "mae", **{key: torch.zeros(shape)})
    assert "\n" not in str(caught.value)


def test_a_published_file_is_named_in_every_refusal(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights_of("mocov3").items()}}, path)
    assert read_published(path, "mocov3", 2).encoder.config.depth == 1
    with pytest.raises(UserError, match=r"x\.pth looks like a MoCo-v3 checkpoint"):
        read_published(path, "mae")
