"""One-stream trackers: both forms against plain timm calls, one pass against two, and weights from encoders."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.build import build_encoder  # noqa: E402
from edgemim.models.one_stream import OneStreamTracker, initialise_from, interpolate_positions  # noqa: E402
from edgemim.models.sizes import VitConfig  # noqa: E402
from edgemim.models.tracker_sizes import TRACKER_SIZES, TrackerForm, TrackerSize  # noqa: E402

ENCODER = VitConfig(width=24, depth=3, heads=3, patch_size=8, image_size=32)
FORM = TrackerForm(template_size=24, search_size=40, head_width=16)


def built(**settings: object) -> OneStreamTracker:
    torch.manual_seed(0)
    model = OneStreamTracker(FORM.model_copy(update=settings).on(ENCODER))
    for parameter in model.parameters():  # biases and positions that matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def pair(model: OneStreamTracker, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = (model.size.template_size, model.size.search_size)
    template, search = (torch.randn(batch, 3, side, side, generator=generator) for side in sides)
    return template, search


def embedded(model: OneStreamTracker, template: Tensor, search: Tensor) -> Tensor:
    """Tokens with positions, written out."""
    parts = []
    for crop, positions in ((template, model.template_positions), (search, model.search_positions)):
        patches = F.unfold(crop, 8, stride=8).transpose(1, 2)
        weight = model.vit.patch_embed.proj.weight.flatten(1)
        parts.append(patches @ weight.T + model.vit.patch_embed.proj.bias + positions)
    return torch.cat(parts, dim=1)


def test_parameters_of_tracker_and_backbone_apart() -> None:
    counts = OneStreamTracker(TRACKER_SIZES["vit_tiny_published"]).parameter_counts()
    assert counts == {"tracker": 8_040_645, "backbone": 5_547_840, "head": 2_492_805}
    thin = OneStreamTracker(TRACKER_SIZES["vit_tiny_thin"]).parameter_counts()
    assert thin["tracker"] == 5_953_317 and thin["backbone"] == counts["backbone"]


@torch.no_grad()
def test_joint_attention_is_timms_blocks_on_all_tokens() -> None:
    model = built(elimination=False)
    template, search = pair(model)
    x = embedded(model, template, search)
    for block in model.vit.blocks:
        x = block(x)
    features = model.features(template, search)
    assert torch.allclose(torch.cat([features.template, features.search], 1), model.vit.norm(x), atol=1e-5)
    expected = model.head(model.vit.norm(x)[:, 9:].transpose(1, 2).reshape(2, 24, 5, 5))
    for ours, theirs in zip(model(template, search), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@torch.no_grad()
def test_cached_attention_is_a_mask_over_joint_attention() -> None:
    model = built(attention="cached")
    template, search = pair(model)
    x = embedded(model, template, search)
    sees = torch.ones(34, 34, dtype=torch.bool)
    sees[:9, 9:] = False  # the template's tokens do not see the search region
    for block in model.vit.blocks:
        x = block(x, attn_mask=sees)
    features = model.features(template, search)
    assert torch.allclose(torch.cat([features.template, features.search], 1), model.vit.norm(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [(), (2,), (1, 3)])
def test_cached_attention_in_one_pass_and_in_two(blocks: tuple[int, ...]) -> None:
    model = built(attention="cached", matching_blocks=blocks)
    template, search = pair(model)
    caches = model.encode_template(template)
    assert caches[0].shape == caches[1].shape == (3, 2, 3, 9, 8) and caches[2].shape == (len(blocks), 2, 9, 24)
    for ours, theirs in zip(model.search_with(search, *caches), model(template, search), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    other = model.encode_template(template + 0.5)
    assert not torch.allclose(model.search_with(search, *other).score, model(template, search).score, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "cached"])
def test_matching_is_a_cosine_of_centred_tokens(attention: str) -> None:
    model = built(attention=attention, elimination=False, matching_blocks=(1, 3))
    template, search = pair(model)
    x, found = embedded(model, template, search), model.features(template, search).similar
    sees = torch.ones(34, 34, dtype=torch.bool)
    sees[:9, 9:] = attention == "joint"
    for number, block in enumerate(model.vit.blocks):
        x = block(x, attn_mask=sees)
        if number != 1:
            z, s = (part - part.mean(1, keepdim=True) for part in (x[:, :9], x[:, 9:]))
            expected = 3 * F.cosine_similarity(s[:, :, None], z[:, None], dim=-1)
            assert torch.allclose(found[..., 9 * (number // 2) :][..., :9], expected, atol=1e-5)
    assert found.shape == (2, 25, 18)
    assert not torch.equal(model(template, search).score, model(template.flip(3), search).score)


@torch.no_grad()
def test_matching_survives_elimination() -> None:
    model = built(matching_blocks=(1, 3), elimination_blocks=(2,), keep=(0.5,))
    template, search = pair(model)
    features = model.features(template, search)
    gone = (features.search == 0).all(-1)
    assert (features.similar[..., 9:][gone] == 0).all() and (features.similar[..., :9][gone] != 0).any()
    dense = model.features(template, search, keep_rate=1.0)
    assert torch.allclose(features.similar[..., :9], dense.similar[..., :9])


def test_joint_attention_has_no_cache() -> None:
    model = built()
    with pytest.raises(ValueError, match="cannot be cached"):
        model.encode_template(pair(model)[0])


@torch.no_grad()
def test_the_template_is_seen_and_sees() -> None:
    """In joint attention its tokens change with the search region, in the cached form they do not."""
    for attention, changes in (("joint", True), ("cached", False)):
        model = built(attention=attention, elimination=False)
        template, search = pair(model)
        first, second = (model.features(template, region).template for region in (search, search.flip(3)))
        assert torch.allclose(first, second, atol=1e-6) is not changes


@torch.no_grad()
def test_elimination_drops_and_restores() -> None:
    model = built(elimination_blocks=(1, 3), keep=(0.6, 0.5))
    template, search = pair(model)
    features = model.features(template, search)
    assert {number: cut.kept.shape[1] for number, cut in features.eliminated.items()} == {1: 15, 3: 8}
    zero = (features.search == 0).all(-1)
    assert zero.sum(1).tolist() == [17, 17]
    for row in range(2):
        kept = set(features.eliminated[3].kept[row].tolist())
        gone = set(features.eliminated[1].removed[row].tolist()) | set(features.eliminated[3].removed[row].tolist())
        assert kept | gone == set(range(25)) and not kept & gone
        assert set(zero[row].nonzero()[:, 0].tolist()) == gone


@torch.no_grad()
def test_a_kept_share_of_one_is_no_elimination() -> None:
    model, dense = built(), built(elimination=False)
    template, search = pair(model)
    assert model.features(template, search, keep_rate=1.0).eliminated == {}
    for ours, theirs in zip(model(template, search, keep_rate=1.0), dense(template, search), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(model(template, search).score, dense(template, search).score)
    half = model.features(template, search, keep_rate=0.5).eliminated
    assert [cut.kept.shape[1] for cut in half.values()] == [13, 7, 4]


@torch.no_grad()
def test_tokens_on_the_box_may_rank() -> None:
    model = built(ranked_by="box", elimination_blocks=(2,), keep=(0.3,))
    template, search = pair(model)
    corner, middle = torch.tensor([[0.0, 0.0, 0.4, 0.4]] * 2), torch.tensor([[0.4, 0.4, 0.6, 0.6]] * 2)
    kept = [model.features(template, search, template_box=box).eliminated[2].kept for box in (corner, middle)]
    assert not torch.equal(*(rows.sort(1).values for rows in kept))
    with pytest.raises(ValueError, match="must be given"):
        model(template, search)


@pytest.mark.parametrize("attention", ["joint", "cached"])
def test_every_parameter_learns(attention: str) -> None:
    model = built(attention=attention).train()
    template, search = pair(model)
    maps = model(template, search)
    torch.stack([part.square().mean() for part in maps]).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == []


def test_weights_of_an_encoder_and_what_is_told() -> None:
    torch.manual_seed(1)
    source = build_encoder(ENCODER)
    model = OneStreamTracker(FORM.on(ENCODER))
    head = {key: value.clone() for key, value in model.head.state_dict().items()}
    report, note = initialise_from(model, source.vit.state_dict(), ENCODER)
    ours, theirs = model.vit.state_dict(), source.vit.state_dict()
    assert torch.equal(ours["blocks.1.mlp.fc1.weight"], theirs["blocks.1.mlp.fc1.weight"])
    assert all(torch.equal(value, head[key]) for key, value in model.head.state_dict().items())
    assert report.dropped == ("vit.cls_token",) and all(key.startswith("head.") for key in report.new)
    assert note == "positions of 4 x 4 patches interpolated to 3 x 3 and 5 x 5"
    table = source.vit.pos_embed
    assert table is not None
    picture = table[0, 1:].T.reshape(1, 24, 4, 4)
    expected = F.interpolate(picture, (5, 5), mode="bicubic", align_corners=False)[0].flatten(1).T
    assert torch.allclose(model.search_positions[0], expected)


def test_another_number_of_heads_is_told_another_width_refused() -> None:
    source = build_encoder(ENCODER)
    model = OneStreamTracker(FORM.on(ENCODER.model_copy(update={"heads": 2})))
    _, note = initialise_from(model, source.vit.state_dict(), ENCODER)
    assert "trained with 3 heads, the tracker has 2" in note
    wider = OneStreamTracker(FORM.on(ENCODER.model_copy(update={"width": 48})))
    with pytest.raises(UserError, match="weights do not fit"):
        initialise_from(wider, source.vit.state_dict(), ENCODER)


def test_positions_of_the_same_grid_stay() -> None:
    table = torch.randn(1, 16, 4)
    assert torch.equal(interpolate_positions(table, (4, 4), 4), table)


def test_layers_for_layer_wise_rates() -> None:
    from timm.optim import param_groups_layer_decay

    model = built()
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=tuple(model.no_weight_decay()), layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(scales) == set(names.values())
    assert scales["head.score.0.0.weight"] == (1.0, 0.05)
    assert scales["template_positions"][1] == 0.0
    assert scales["vit.patch_embed.proj.weight"][0] < scales["vit.blocks.0.mlp.fc1.weight"][0] < 1.0


def test_a_size_is_all_that_a_model_needs() -> None:
    size = TRACKER_SIZES["vit_nano"]
    model = OneStreamTracker(TrackerSize.model_validate(size.model_dump(mode="json")), drop_path=0.2)
    last: Any = model.vit.blocks[-1]
    assert last.drop_path1.drop_prob == pytest.approx(0.2)
