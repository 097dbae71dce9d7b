"""Whose a checkpoint is."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert import FAMILIES  # noqa: E402
from edgemim.models.convert.detect import LOOKS, check_family, look  # noqa: E402

OWN = {
    "mae": "mae",
    "d_mae": "mae-lite",
    "d2_mae": "mae-lite",
    "deepmim": "deepmim",
    "mirl": "mirl",
    "mff": "mff",
    "simmim_vit": "simmim",
    "mocov3": "mocov3",
    "hiera_mae": "hiera",
    "vit_finetune": "mae",
}


@pytest.mark.parametrize(("case", "family"), OWN.items())
def test_each_is_its_own_familys(case: str, family: str) -> None:
    check_family(weights_of(case), family)
    found = look(weights_of(case))
    assert found is not None and found[0].families[0] == family


@pytest.mark.parametrize(
    ("case", "family", "title"),
    [
        ("simmim_vit", "mae", "a SimMIM checkpoint (has encoder.rel_pos_bias."),
        ("mae", "simmim", "an MAE checkpoint (has decoder_blocks.0."),
        ("mirl", "deepmim", "a MIRL checkpoint"),
        ("deepmim", "mae", "a DeepMIM checkpoint"),
        ("mocov3", "dino", "a MoCo-v3 checkpoint (has base_encoder."),
        ("mff", "timm", "an mmpretrain checkpoint"),
        ("d_mae", "mae", "a D-MAE checkpoint"),
        ("hiera_mae", "mae-lite", "a Hiera checkpoint"),
        ("vit_finetune", "mff", "a plain vision transformer checkpoint"),
    ],
)
def test_a_wrong_family_is_refused_by_name(case: str, family: str, title: str) -> None:
    with pytest.raises(UserError) as caught:
        check_family(weights_of(case), family)
    sentence = str(caught.value)
    assert title in sentence and f"not {family}; give --from {OWN[case]}" in sentence
    assert "\n" not in sentence


def test_what_nobody_wrote_is_said_with_its_tensors() -> None:
    with pytest.raises(UserError, match=r"no checkpoint that is known \(its tensors are conv1\.weight, fc\.bias"):
        check_family(["fc.bias", "conv1.weight"], "mae")
    assert look(["layer1.weight"]) is None


def test_every_family_has_a_look() -> None:
    assert {family for candidate in LOOKS for family in candidate.families} >= FAMILIES.keys()
