import pytest

from edgemim.commands.quickstart import QuickstartConfig
from edgemim.commands.quickstart.config import ARMS
from edgemim.config import load_yaml, parse, to_yaml
from edgemim.errors import UserError
from edgemim.methods import MaeConfig
from edgemim.models.sizes import SIZES


def test_defaults_are_the_four_arms_of_one_network():
    config = QuickstartConfig()
    assert config.encoder == SIZES["vit_micro"]
    assert list(ARMS) == ["both", "mim", "distill", "scratch"]
    assert len(config.finetune_lrs) >= 3
    assert len(config.seeds) >= 2
    assert config.distill.mask_ratio == 0
    assert isinstance(config.mim, MaeConfig)
    # One change at a time: what both share with each alone is the same.
    assert config.mim.mask_ratio == config.both.mask_ratio


def test_yaml_and_flags_round_trip(tmp_path):
    config = parse(QuickstartConfig, ["--seeds", "3", "4", "--mim.mask-ratio", "0.75"], prog="edgemim quickstart")
    assert (config.seeds, config.mim.mask_ratio) == ((3, 4), 0.75)
    (tmp_path / "q.yaml").write_text(to_yaml(config))
    assert load_yaml(tmp_path / "q.yaml", QuickstartConfig) == config


def test_crops_of_another_size_than_the_network_are_refused():
    with pytest.raises(UserError, match=r"'photos.crop_px' 48 is not the encoder's 64 px"):
        parse(QuickstartConfig, ["--photos.crop-px", "48"], prog="edgemim quickstart")
