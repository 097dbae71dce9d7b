"""The encoder with relative positions: whole images as timm's own forward, visible patches by their own offsets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_training import NORMALIZATION, mask_of, nano_encoder, pixels

from edgemim.models.encoder import TokenMask
from edgemim.models.relative import RelativeEncoder, RelativeVit, from_plain
from edgemim.models.sizes import RelativePositions, RelativeVitConfig, VitConfig
from edgemim.models.weights import bare_vit, load_weights, to_timm
from edgemim.training.optim import build_adamw

SIZE = RelativeVitConfig(width=24, depth=3, heads=3, patch_size=8, image_size=32)
VARIANTS = {
    "study": {},
    "study, keys without bias": {"key_bias": False},
    "beit": {"offsets": "block", "absolute_positions": False, "key_bias": False, "layer_scale": 0.1},
    "simmim": {"offsets": "shared", "absolute_positions": False, "key_bias": False, "layer_scale": 0.1},
    "shared beside absolute": {"offsets": "shared"},
    "both": {"offsets": "both", "layer_scale": 0.5},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def encoder(changes: dict[str, object]) -> RelativeEncoder:
    torch.manual_seed(0)
    made = RelativeEncoder(SIZE.model_copy(update=changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made


@each_variant
def test_a_whole_image_is_timms_forward(changes: dict[str, object]) -> None:
    made, x = encoder(changes), NORMALIZATION.apply(pixels(2))
    torch.testing.assert_close(made(x).last, made.vit.forward_features(x), rtol=1e-4, atol=1e-5)
    everything = TokenMask.of(torch.zeros(2, 16, dtype=torch.bool))
    torch.testing.assert_close(made(x, everything).last, made(x).last, rtol=1e-4, atol=1e-5)


def slow_bias(made: RelativeEncoder, block: int, heads: int = 3, side: int = 4) -> torch.Tensor:
    """[heads, 17, 17] from the tables, offset by offset: rows apart, columns apart, then the three of the class token."""
    holder: Any = made.vit.blocks[block].attn
    tables = [holder.relative_position_bias_table]
    if made.vit.rel_pos_bias is not None:
        tables.append(made.vit.rel_pos_bias.relative_position_bias_table)
    bias = torch.zeros(heads, side**2 + 1, side**2 + 1)
    for table in tables:
        if table is None:
            continue
        assert len(table) == (2 * side - 1) ** 2 + 3
        bias[:, 0, :] += table[-3][:, None]
        bias[:, 1:, 0] += table[-2][:, None]
        bias[:, 0, 0] += table[-1] - table[-3]
        for query in range(side**2):
            for key in range(side**2):
                rows, columns = query // side - key // side, query % side - key % side
                bias[:, 1 + query, 1 + key] += table[(rows + side - 1) * (2 * side - 1) + columns + side - 1]
    return bias


@each_variant
@torch.no_grad()
def test_visible_patches_attend_by_their_own_offsets(changes: dict[str, object]) -> None:
    """Dropping patches equals a full pass in which no token attends to them; logits hold the bias of what is left."""
    made, x, mask = encoder(changes), NORMALIZATION.apply(pixels(2)), mask_of(2)
    hidden = torch.cat([torch.zeros(2, 1, dtype=torch.bool), mask.masked], dim=1)
    tokens, logits = made(x, taps=[0]).tokens[0], torch.zeros(0)
    for number, block in enumerate(made.vit.blocks):
        bare = RelativeVit(SIZE.model_copy(update={**changes, "offsets": "shared"})).blocks[number]
        load_weights(bare, {k: v for k, v in block.state_dict().items() if "table" not in k})
        bias = slow_bias(made, number).expand(2, -1, -1, -1)
        q, k = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in projected(bare, tokens))
        logits = q @ k.transpose(-1, -2) / 8**0.5 + bias
        tokens = bare(tokens, shared_rel_pos_bias=bias.masked_fill(hidden[:, None, None, :], float("-inf")))
    kept = torch.cat([torch.zeros(2, 1, dtype=torch.long), mask.visible + 1], dim=1)
    features = made(x, mask, attention=[3])
    torch.testing.assert_close(
        features.tokens[3], tokens.gather(1, kept[..., None].expand(-1, -1, 24)), rtol=1e-4, atol=1e-5
    )
    for row in range(2):
        expected = logits[row][:, kept[row]][:, :, kept[row]]
        torch.testing.assert_close(features.attention[3][row], expected, rtol=1e-4, atol=1e-5)


def projected(block: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [b, t, width] of a block's attention."""
    attention = block.attn
    x = attention.qkv(block.norm1(tokens))
    if attention.q_bias is not None:
        x = x + torch.cat([attention.q_bias, torch.zeros(24), attention.v_bias])
    return x[..., :24], x[..., 24:48]


@each_variant
def test_a_hidden_patch_may_stay_as_a_mask_token(changes: dict[str, object]) -> None:
    made, x, mask = encoder(changes), NORMALIZATION.apply(pixels(2)), mask_of(2)
    fill = torch.randn(1, 1, 24)
    hidden = mask.masked.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    before = made(x, mask, fill=fill).last
    assert before.shape == (2, 17, 24)
    assert torch.equal(made(torch.where(hidden, x + 3, x), mask, fill=fill).last, before)


@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("offsets", ["block", "shared", "both"])
def test_a_plain_encoder_gains_tables_that_change_nothing_yet(offsets: str, key_bias: bool) -> None:
    plain = nano_encoder(VitConfig(width=24, depth=3, heads=3, patch_size=8, image_size=32))
    made = RelativeEncoder(
        RelativePositions.model_validate({"offsets": offsets, "key_bias": key_bias}).added_to(plain.config)
    )
    weights = from_plain(plain.vit.state_dict(), made.config)
    report = load_weights(
        made.vit,
        weights,
        may_drop=tuple(k for k in weights if k.endswith("k_bias")),
        may_miss=tuple(k for k in made.vit.state_dict() if k.endswith("bias_table")),
    )
    assert len(report.new) == {"block": 3, "shared": 1, "both": 4}[offsets]
    assert len(report.dropped) == (0 if key_bias else 3)  # said, one a block
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    torch.testing.assert_close(made(x, mask).last, plain(x, mask).last, rtol=1e-4, atol=1e-5)
    if key_bias:
        torch.testing.assert_close(
            made(x, mask, attention=[2]).attention[2], plain(x, mask, attention=[2]).attention[2]
        )


@each_variant
def test_timms_form_gives_the_same_features(changes: dict[str, object]) -> None:
    made, x = encoder(changes), NORMALIZATION.apply(pixels(2))
    model = to_timm(made, num_classes=7)
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model.forward_features(x), made(x).last, rtol=1e-4, atol=1e-5)  # pyright: ignore


def test_vit_tiny_with_tables_has_the_published_size() -> None:
    with torch.device("meta"):
        count = sum(
            p.numel() for p in RelativeVit(RelativeVitConfig(), num_classes=1000, global_pool="avg").parameters()
        )
    assert count == 5_717_416 + 12 * 732 * 12


@pytest.mark.parametrize("offsets", ["block", "shared", "both"])
def test_layer_decay_places_the_tables(offsets: str) -> None:
    """As in the published code: with their blocks, or, if all blocks share one, at the head's rate; decayed."""
    model = bare_vit(SIZE.model_copy(update={"offsets": offsets}), num_classes=5)
    groups = build_adamw(
        model, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=0.5, no_decay=tuple(model.no_weight_decay())
    ).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    placed = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(placed) == len(names)
    tables = {name: value for name, value in placed.items() if name.endswith("bias_table")}
    expected = {f"blocks.{i}.attn.relative_position_bias_table": (0.5 ** (3 - i), 0.05) for i in range(3)}
    shared = {"rel_pos_bias.relative_position_bias_table": (1.0, 0.05)}
    assert tables == {"block": expected, "shared": shared, "both": expected | shared}[offsets]
    assert placed["cls_token"] == placed["pos_embed"] == (0.5**4, 0.0)
    assert placed["head.weight"] == (1.0, 0.05)
