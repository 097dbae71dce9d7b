"""OSTrack's names become a tracker's, the sizes follow from the tensors, and what is not a tracker is told so."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.ostrack import ostrack_size, plan_ostrack  # noqa: E402
from edgemim.models.convert.plan import Drop  # noqa: E402
from edgemim.models.one_stream import OneStreamTracker  # noqa: E402
from edgemim.models.tracker_sizes import TRACKER_SIZES  # noqa: E402
from edgemim.models.weights import load_weights  # noqa: E402


def test_every_tensor_has_its_place() -> None:
    weights = weights_of("ostrack")
    plan = plan_ostrack(weights)
    assert {key for key, step in plan.steps.items() if isinstance(step, Drop)} == {
        "backbone.cls_token",
        "backbone.pos_embed",
    }
    names = {key: move.name for key, move in plan.moves.items()}
    assert names["backbone.pos_embed_z"] == "template_positions"
    assert names["backbone.pos_embed_x"] == "search_positions"
    assert names["box_head.conv2_ctr.0.weight"] == "head.score.1.0.weight"
    assert names["box_head.conv4_offset.1.running_var"] == "head.offset.3.1.running_var"
    assert names["box_head.conv5_size.bias"] == "head.size.4.bias"
    model = OneStreamTracker(ostrack_size(weights, heads=2))
    load_weights(model, plan.state(weights))  # all that the model has, nothing else


def test_sizes_follow_from_the_tensors() -> None:
    size = ostrack_size(weights_of("ostrack"), heads=4)
    assert (size.template_size, size.search_size, size.head_width) == (16, 24, 8)
    encoder = size.encoder
    assert (encoder.width, encoder.depth, encoder.heads, encoder.patch_size, encoder.image_size) == (8, 3, 4, 4, 20)
    published = TRACKER_SIZES["vit_tiny_published"]
    ours = OneStreamTracker(published).state_dict()
    back = {move.name: key for key, move in plan_ostrack(weights_of("ostrack")).moves.items()}
    original = {back[name]: value for name, value in ours.items() if name in back}
    twelve = {f"backbone.blocks.{number}.norm1.bias": torch.zeros(192) for number in range(12)}
    assert ostrack_size({**original, **twelve}, heads=12).model_dump(exclude={"encoder"}) == published.model_dump(
        exclude={"encoder"}
    )


def test_what_is_no_tracker_is_told() -> None:
    weights = weights_of("ostrack")
    with pytest.raises(UserError, match=r"holds no box_head\.conv1_ctr\.0\.weight"):
        ostrack_size({key: value for key, value in weights.items() if "conv1_ctr" not in key}, heads=2)
    with pytest.raises(UserError, match=r"box_head\.conv9_ctr\.weight2"):
        plan_ostrack({**weights, "box_head.conv9_ctr.weight2": torch.zeros(1)})
    with pytest.raises(UserError, match=r"backbone\.blocks\.0\.attn\.rel_pos"):
        plan_ostrack({**weights, "backbone.blocks.0.attn.rel_pos": torch.zeros(1)})
