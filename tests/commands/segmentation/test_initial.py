"""What a segmentation model starts from: any encoder run, a classifier, other image sizes, new relative positions."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from edgemim.commands.segmentation.initial import find_start, load_start  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.build import build_encoder  # noqa: E402
from edgemim.models.semantic_fpn import SemanticFpn, SemanticFpnConfig  # noqa: E402
from edgemim.models.sizes import SIZES, RelativePositions  # noqa: E402
from edgemim.models.weights import MODEL_FILE, read_tensors, save_model  # noqa: E402
from edgemim.tasks.classification import build_model  # noqa: E402

torch.set_num_threads(1)

STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


def pretrained(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    encoder = build_encoder(SIZES[name])
    facts = {"kind": "encoder", "encoder": SIZES[name].model_dump(mode="json"), "preprocessing": STATISTICS}
    save_model(folder / "model", encoder.vit.state_dict(), facts)
    return folder


def classifier(folder: Path, name: str) -> Path:
    torch.manual_seed(1)
    architecture = {"vit": SIZES[name].as_classifier().model_dump(mode="json")}
    facts = {"kind": "classification", "architecture": architecture, "preprocessing": STATISTICS}
    save_model(folder / "model", build_model(architecture, 4).state_dict(), facts)
    return folder


def started(run: Path | str, crop: int, added: RelativePositions | None = None) -> tuple[SemanticFpn, str]:
    start = find_start(str(run), SIZES["vit_nano"], added, crop)
    model = SemanticFpn(start.encoder, SemanticFpnConfig(channels=8), 3)
    return model, load_start(model, start, MODEL_FILE)


@pytest.mark.parametrize("make", [pretrained, classifier])
@pytest.mark.parametrize("name", ["vit_nano", "vit_nano_rel", "hiera_micro_32"])
def test_each_family_at_its_own_and_at_another_size(tmp_path: Path, name: str, make) -> None:
    run = make(tmp_path / "run", name)
    for crop in (32, 64):
        model, note = started(run, crop)
        weights, own = read_tensors(run / "model" / MODEL_FILE), model.encoder.vit.state_dict()
        same = [key for key in weights if key in own and torch.equal(weights[key], own[key])]
        assert len(same) >= len(weights) - 12
        assert ("interpolated from 32 to 64" in note) is (crop == 64)
        with torch.inference_mode():
            assert model.eval()(torch.randn(1, 3, crop, crop)).shape == (1, 3, crop, crop)
    assert find_start(str(run), SIZES["vit_nano"], None, 32).statistics == STATISTICS


def test_relative_positions_are_added_at_zero(tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", "vit_nano")
    plain, _ = started(run, 32)
    relative, _ = started(run, 32, RelativePositions())
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        for a, b in zip(plain.eval().maps(images), relative.eval().maps(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_does_not_go_together_is_one_sentence(tmp_path: Path) -> None:
    rel = pretrained(tmp_path / "rel", "vit_nano_rel")
    for arguments, sentence in (
        (("timm:vit_tiny_patch16_224", SIZES["vit_nano"], None, 32), "starts from a run or from scratch"),
        (("scratch", SIZES["vit_nano"], None, 36), "task.crop_size 36 .* not a multiple of patch_size 8"),
        (("scratch", SIZES["hiera_micro_32"], None, 36), "task.crop_size 36 .* mask unit's 8"),
        ((str(rel), SIZES["vit_nano"], RelativePositions(), 32), "not to a relative_vit as .* holds; leave them out"),
        ((str(tmp_path / "absent"), SIZES["vit_nano"], None, 32), "no run folder at"),
    ):
        with pytest.raises(UserError, match=sentence):
            find_start(*arguments)
    save_model(tmp_path / "seg" / "model", {"a": torch.zeros(1)}, {"kind": "segmentation"})
    with pytest.raises(UserError, match="holds a segmentation model"):
        find_start(str(tmp_path / "seg"), SIZES["vit_nano"], None, 32)
