import pytest
import timm
import torch

from edgemim.errors import UserError
from edgemim.teachers.fit import find_fit


@pytest.fixture(scope="module")
def lite():
    return timm.create_model("tf_efficientnet_lite0", pretrained=False)


@pytest.mark.parametrize(
    ("image_size", "grid", "stage", "side", "channels"),
    [(64, 8, 3, 128, 112), (224, 14, 3, 224, 112), (32, 8, 3, 128, 112), (56, 7, 4, 224, 320), (224, 28, 2, 224, 40)],
)
def test_deepest_stage_within_the_teachers_own_size(lite, image_size, grid, stage, side, channels):
    fit = find_fit(lite, "lite", image_size=image_size, grid=(grid, grid), stage=None, input_size=None)
    assert (fit.stage, fit.input_size, fit.channels) == (stage, (side, side), channels)


def test_a_large_grid_takes_the_smallest_input(lite):
    fit = find_fit(lite, "lite", image_size=1024, grid=(256, 256), stage=None, input_size=None)
    assert (fit.stage, fit.stride, fit.input_size) == (0, 2, (512, 512))


def test_stage_and_input_size_can_be_chosen(lite):
    by_stage = find_fit(lite, "lite", image_size=64, grid=(8, 8), stage=4, input_size=None)
    assert (by_stage.input_size, by_stage.last) == ((256, 256), True)
    by_size = find_fit(lite, "lite", image_size=64, grid=(8, 8), stage=None, input_size=64)
    assert (by_size.stage, by_size.stride) == (2, 8)
    assert "stride 8" in by_size.summary
    assert "as it is at 64 px" in by_size.summary


@pytest.mark.parametrize(
    ("stage", "input_size", "words"),
    [
        (None, 224, ["224 px", "8×8", "16 or 32 or 64 or 128 or 256"]),
        (3, 224, ["8×8", "to 128"]),
        (9, None, ["stages 0 to 4"]),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_the_remedy(lite, stage, input_size, words):
    with pytest.raises(UserError) as caught:
        find_fit(lite, "lite", image_size=64, grid=(8, 8), stage=stage, input_size=input_size)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_vit_takes_the_size_its_patches_ask_for():
    model = timm.create_model("test_vit", pretrained=False)
    fit = find_fit(model, "vit", image_size=64, grid=(8, 8), stage=None, input_size=None)
    stride = model.patch_embed.patch_size[0]
    assert (fit.input_size, fit.last) == ((8 * stride, 8 * stride), True)
    assert model.patch_embed.grid_size == (8, 8)


def test_a_model_with_a_fixed_size_is_refused_with_both_sizes():
    model = timm.create_model("hiera_tiny_224", pretrained=False)
    with pytest.raises(UserError, match=r"needs|cannot take"):
        find_fit(model, "hiera", image_size=64, grid=(11, 11), stage=1, input_size=None)


def test_a_stride_on_paper_is_checked_on_a_real_map(lite, monkeypatch):
    monkeypatch.setattr(lite, "forward_intermediates", lambda x, **_: [torch.zeros(1, 112, 7, 7)])
    with pytest.raises(UserError, match="7×7 features of 112 channels on 128 px, the student has 8×8"):
        find_fit(lite, "lite", image_size=64, grid=(8, 8), stage=None, input_size=None)


def test_a_model_without_feature_maps_is_refused():
    with pytest.raises(UserError, match="gives no feature maps"):
        find_fit(torch.nn.Linear(2, 2), "lin", image_size=64, grid=(8, 8), stage=None, input_size=None)
