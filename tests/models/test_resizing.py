"""Positions for another image size: the identity at the same size, smooth tables stay smooth, the network still runs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgemim.models.build import build_encoder  # noqa: E402
from edgemim.models.position import sincos_positions  # noqa: E402
from edgemim.models.resizing import resize_positions  # noqa: E402
from edgemim.models.sizes import SIZES, EncoderSize  # noqa: E402

torch.set_num_threads(1)


def sized(config: EncoderSize, side: int) -> EncoderSize:
    return config.model_copy(update={"image_size": side})


@pytest.mark.parametrize("name", ["vit_nano", "vit_nano_rel", "hiera_micro_32"])
@pytest.mark.parametrize("side", [32, 48, 64])
def test_weights_fit_the_larger_encoder_and_all_else_stays(name: str, side: int) -> None:
    if name.startswith("hiera") and side % 8:
        pytest.skip("not a multiple of the mask unit")
    torch.manual_seed(0)
    source, target = SIZES[name].as_classifier(), sized(SIZES[name].as_classifier(), side)
    weights = build_encoder(source).vit.state_dict()
    indices = {key: value for key, value in weights.items() if key.endswith("relative_position_index")}
    resized = resize_positions({k: v for k, v in weights.items() if k not in indices}, source, target)
    encoder = build_encoder(target)
    missing = encoder.vit.load_state_dict(resized, strict=False)
    assert missing.unexpected_keys == [] and all(key.endswith("index") for key in missing.missing_keys)
    for key, value in resized.items():
        if ("pos_embed" not in key and "bias_table" not in key) or side == 32:
            assert torch.equal(value, weights[key])
    with torch.inference_mode():
        assert torch.isfinite(encoder.eval()(torch.randn(1, 3, side, side)).last).all()


def test_interpolated_sines_are_nearly_the_same_waves() -> None:
    """A position half way between two patches of the small grid lies half way in the table, too."""
    small, large = sized(SIZES["vit_nano"], 128), sized(SIZES["vit_nano"], 256)
    table = sincos_positions(48, small.grid, prefix=1)
    found = resize_positions({"pos_embed": table}, small, large)["pos_embed"]
    assert found.shape == (1, 1 + 32 * 32, 48)
    assert torch.equal(found[:, 0], table[:, 0])
    side = torch.arange(32, dtype=torch.float64) / 2 - 0.25  # centres of the large grid, counted in the small one
    frequency = 10000.0 ** -(torch.arange(12, dtype=torch.float64) / 12)
    expected = torch.sin(side[:, None] * frequency)  # the first channels: sines of the column
    ours = found[0, 1:].view(32, 32, 48)[16, :, :12].double()
    assert (ours[2:-2, 1:] - expected[2:-2, 1:]).abs().max() < 0.05
