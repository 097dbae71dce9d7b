"""Where a tracker begins: at an encoder's weights, at another tracker's of other sizes, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from edgemim.commands.tracking.start import (  # noqa: E402
    build_tracker,
    find_tracker_start,
    resize_tracker,
    widen_head,
)
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.build import build_encoder  # noqa: E402
from edgemim.models.one_stream import OneStreamTracker  # noqa: E402
from edgemim.models.sizes import SIZES, HieraConfig, VitConfig  # noqa: E402
from edgemim.models.tracker_sizes import TrackerForm  # noqa: E402
from edgemim.models.weights import read_tensors, save_model  # noqa: E402
from edgemim.tasks.tracking import TrackingTask, tracker_preprocessing  # noqa: E402

torch.set_num_threads(1)
NANO = VitConfig(width=48, depth=2, heads=3, patch_size=8, image_size=32)
FORM = TrackerForm(template_size=16, search_size=32, head_width=16, elimination=False)


def shaken(model: nn.Module) -> nn.Module:
    """Every weight and running statistic random, so that none is zero or one by luck."""
    generator = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value += 0.1 * torch.rand(value.shape, generator=generator)
    return model


def crops(form: TrackerForm) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    sizes = (form.template_size, form.search_size)
    template, search = (torch.randn(2, 3, size, size, generator=generator) for size in sizes)
    return template, search


@pytest.fixture
def encoder_run(tmp_path: Path) -> Path:
    encoder = shaken(build_encoder(NANO))
    statistics = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}
    facts = {"kind": "encoder", "encoder": NANO.model_dump(mode="json"), "preprocessing": statistics}
    save_model(tmp_path / "encoder" / "model", encoder.vit.state_dict(), facts)  # pyright: ignore
    return tmp_path / "encoder"


def tracker_run(folder: Path, form: TrackerForm) -> tuple[Path, OneStreamTracker]:
    model = OneStreamTracker(form.on(NANO))
    shaken(model)
    task = TrackingTask(model, tracker_preprocessing(model.size))
    save_model(folder / "model", model.state_dict(), task.facts())
    return folder, model.eval()


def test_from_scratch(tmp_path: Path) -> None:
    start = find_tracker_start("scratch", NANO, FORM)
    model, note = build_tracker(start, 0.1)
    assert note == "weights: from scratch" and start.statistics == {} and model.size.encoder == NANO
    sparse, _ = build_tracker(start, 0.0, -2.19)
    model.load_state_dict(sparse.state_dict())
    with torch.no_grad():
        model.head.score[-1].bias.zero_()  # pyright: ignore
        logits = [tracker.eval()(*crops(FORM)).score.logit() for tracker in (sparse, model)]
    assert torch.allclose(logits[0], logits[1] - 2.19, atol=1e-3)


def test_from_an_encoder_with_its_statistics(encoder_run: Path) -> None:
    start = find_tracker_start(str(encoder_run), SIZES["vit_tiny"], FORM)
    model, note = build_tracker(start, 0.0)
    assert start.size.encoder == NANO, "the run brings its own network"
    assert tuple(start.statistics["mean"]) == (0.4, 0.5, 0.6)
    source = read_tensors(encoder_run / "model" / "model.safetensors")
    assert torch.equal(model.vit.state_dict()["blocks.1.mlp.fc1.weight"], source["blocks.1.mlp.fc1.weight"])
    assert "interpolated to 2 x 2 and 4 x 4" in note


def test_another_tracker_goes_on_as_it_was(tmp_path: Path) -> None:
    run, known = tracker_run(tmp_path / "tracker", FORM)
    model, note = build_tracker(find_tracker_start(str(run), NANO, FORM), 0.0)
    for one, two in zip(known(*crops(FORM)), model.eval()(*crops(FORM)), strict=True):
        assert torch.equal(one, two)
    assert "the tracker in" in note


def test_other_crops_interpolate_positions_alone(tmp_path: Path) -> None:
    larger = FORM.model_copy(update={"template_size": 24, "search_size": 48})
    run, known = tracker_run(tmp_path / "tracker", FORM)
    fitted = resize_tracker(known.state_dict(), known.size, larger.on(NANO))
    changed = {key for key, value in known.state_dict().items() if fitted[key].shape != value.shape}
    assert changed == {"template_positions", "search_positions"}
    model, _ = build_tracker(find_tracker_start(str(run), NANO, larger), 0.0)
    assert model.eval()(*crops(larger)).score.shape == (2, 1, 6, 6)


def test_a_wider_head_answers_as_the_narrow_one(tmp_path: Path) -> None:
    wide = FORM.model_copy(update={"head_width": 64})
    run, known = tracker_run(tmp_path / "tracker", FORM)
    model, _ = build_tracker(find_tracker_start(str(run), NANO, wide), 0.0)
    for one, two in zip(known(*crops(FORM)), model.eval()(*crops(FORM)), strict=True):
        assert torch.allclose(one, two, atol=1e-6) and one.std() > 0
    weights = widen_head(known.state_dict(), OneStreamTracker(wide.on(NANO)).state_dict())
    assert weights["head.score.0.0.weight"][16:].abs().sum() > 0, "the new channels are there"
    assert weights["head.score.1.0.weight"][:8, 16:].abs().sum() == 0, "the old ones do not listen to them"


def test_a_narrower_head_is_a_new_one(tmp_path: Path) -> None:
    run, known = tracker_run(tmp_path / "tracker", FORM.model_copy(update={"head_width": 32}))
    model, note = build_tracker(find_tracker_start(str(run), NANO, FORM), 0.0)
    assert "dropped: head." in note
    assert torch.equal(model.vit.state_dict()["norm.weight"], known.vit.state_dict()["norm.weight"])


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    odd = TrackerForm(template_size=20, search_size=32, head_width=16)
    save_model(tmp_path / "other" / "model", {}, {"kind": "segmentation", "preprocessing": {"mean": 0, "std": 1}})
    save_model(tmp_path / "bad" / "model", {}, {"kind": "encoder", "preprocessing": {"mean": 0, "std": 1}})
    for init, encoder, form, sentence in (
        ("timm:vit_tiny_patch16_224", NANO, FORM, "from a run or from scratch, not from timm"),
        ("scratch", HieraConfig(), FORM, "plain vision transformer, not on a hiera"),
        ("scratch", NANO, odd, r"task\.tracker: template_size 20 is not a multiple of the encoder's patch of 8"),
        (str(tmp_path / "none"), NANO, FORM, "no run folder at"),
        (str(tmp_path / "other"), NANO, FORM, "holds a segmentation model"),
        (str(tmp_path / "bad"), NANO, FORM, r"model\.json does not describe a model"),
    ):
        with pytest.raises(UserError, match=sentence):
            find_tracker_start(init, encoder, form)
