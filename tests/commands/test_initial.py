"""Where a classifier's weights come from, and what is refused before images are read."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import edgemim  # noqa: E402
from edgemim.commands.finetune import build  # noqa: E402
from edgemim.commands.initial import find_start  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.build import build_encoder  # noqa: E402
from edgemim.models.sizes import SIZES  # noqa: E402
from edgemim.models.weights import MODEL_FILE, load_encoder, read_tensors, save_model  # noqa: E402
from edgemim.tasks import LabelledData  # noqa: E402
from edgemim.tasks.classification import ClassificationTask, build_model  # noqa: E402

torch.set_num_threads(1)

FORMS = {
    "study": "block",
    "shared alone": {"offsets": "shared", "absolute_positions": False, "key_bias": False},
}


@pytest.fixture(scope="module", params=["vit_nano", "vit_nano_rel"])
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with random weights and biases, as a pre-training run hands it on."""
    run = tmp_path_factory.mktemp(request.param) / "run"
    torch.manual_seed(0)
    encoder, size = build_encoder(SIZES[request.param]), SIZES[request.param]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    preprocessing = {"image_size": size.image_size, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    facts = {"kind": "encoder", "encoder": size.model_dump(mode="json"), "preprocessing": preprocessing}
    save_model(run / "model", encoder.vit.state_dict(), facts)
    return run


def config_of(**changes: object) -> edgemim.FinetuneConfig:
    return edgemim.FinetuneConfig.model_validate(changes)


def begun(config: edgemim.FinetuneConfig, data: LabelledData) -> tuple[ClassificationTask, str]:
    return build(config, data, find_start(config))


@pytest.mark.parametrize("pretrained", ["vit_nano"], indirect=True)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_tables_start_at_zero_beside_what_the_encoder_knows(pretrained: Path, photos: Path, form: object) -> None:
    data = LabelledData.open(photos)
    plain, _ = begun(config_of(init=str(pretrained)), data)
    task, note = begun(config_of(init=str(pretrained), relative_positions=form), data)
    tables = {name: p for name, p in task.model.named_parameters() if name.endswith("bias_table")}
    assert len(tables) == (2 if form == "block" else 1)
    assert not any(table.any() for table in tables.values())
    kept = {name: p for name, p in plain.model.named_parameters() if "qkv.bias" not in name}
    own = dict(task.model.named_parameters())
    for name in kept.keys() & own.keys() - {"head.weight", "head.bias"}:
        assert (own[name] == kept[name]).all(), name
    assert kept.keys() - own.keys() == (set() if form == "block" else {"pos_embed"})
    if form == "block":  # nothing is lost, nothing is added yet: the same features
        images = next(plain.evaluation_batches(8))[0]
        x = torch.from_numpy(images)
        ours, theirs = (m.eval().forward_features(x) for m in (task.model, plain.model))  # pyright: ignore
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    else:
        assert "pos_embed" in note and "k_bias" in note  # what is left behind is said


@pytest.mark.parametrize("pretrained", ["vit_nano_rel"], indirect=True)
def test_positions_that_cannot_be_added_are_refused_before_images_are_looked_for(
    pretrained: Path, tmp_path: Path
) -> None:
    nowhere = {"data": tmp_path / "no_such_folder", "relative_positions": "block", "out": tmp_path / "out"}
    for changes, sentence in (
        ({"init": "timm:vit_tiny_patch16_224"}, "timm's own positions"),
        ({"init": "scratch", "encoder": "vit_nano_rel"}, "to a plain vision transformer, not to a relative_vit;"),
        ({"init": "scratch", "encoder": "hiera_micro_32"}, "to a plain vision transformer, not to a hiera;"),
        ({"init": str(pretrained)}, f"not to a relative_vit as {pretrained} holds"),
    ):
        with pytest.raises(UserError, match=sentence):
            edgemim.finetune(config_of(**nowhere, **changes))
    assert not (tmp_path / "out").exists()


def finetuned(folder: Path, labels: tuple[str, ...] = ("a", "b", "c", "d"), **architecture: object) -> Path:
    """A classifier with random weights, as a fine-tuning run hands it on."""
    torch.manual_seed(1)
    record = {"vit": SIZES["vit_nano"].model_dump(mode="json"), **architecture}
    preprocessing = {"image_size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    facts = {"kind": "classification", "architecture": record, "labels": labels, "preprocessing": preprocessing}
    save_model(folder / "model", build_model(record, len(labels)).state_dict(), facts)
    return folder


@pytest.mark.parametrize("distilled", [False, True])
def test_a_classifier_hands_on_all_but_its_heads(photos: Path, tmp_path: Path, distilled: bool) -> None:
    run = finetuned(tmp_path / "run", distilled=distilled)
    given = read_tensors(run / "model" / MODEL_FILE)
    task, note = begun(config_of(init=str(run)), LabelledData.open(photos))
    own = task.model.state_dict()
    heads = [key for key in given if "head" in key or "dist" in key]
    assert len(heads) == (6 if distilled else 2)
    assert all(torch.equal(own[key], value) for key, value in given.items() if key not in heads)
    # As many classes, but other ones: the head of the same shape is not theirs.
    assert own["head.weight"].shape == given["head.weight"].shape
    assert not torch.equal(own["head.weight"], given["head.weight"])
    assert "new: head.weight, head.bias" in note
    assert task.preprocessing.mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize("pretrained", ["vit_nano", "vit_nano_rel"], indirect=True)
def test_the_class_token_is_classified_behind_the_encoders_own_norm(pretrained: Path, photos: Path) -> None:
    task, note = begun(config_of(init=str(pretrained), pool="cls"), LabelledData.open(photos))
    assert "dropped" not in note
    encoder = load_encoder(pretrained)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    x = task.normalization.apply(images)
    with torch.inference_mode():
        token = encoder(x).last[:, 0]
        logits = task.eval().predict(images)
        torch.testing.assert_close(logits, token @ task.model.head.weight.T + task.model.head.bias)  # pyright: ignore
    assert task.facts()["architecture"]["pool"] == "token"


def test_a_token_that_is_not_there_or_not_free_is_refused(tmp_path: Path) -> None:
    nowhere = {"data": tmp_path / "no_such_folder", "init": "scratch"}
    teacher = {"teacher": "timm:test_vit"}
    hiera, timms = {"encoder": "hiera_micro_32"}, {"init": "timm:test_vit"}
    for changes, sentence in (
        ({**hiera, "pool": "cls"}, "of a plain vision transformer, not a hiera; leave it out"),
        ({**timms, "pool": "cls"}, "not timm:test_vit; leave it out"),
        ({**hiera, "distillation": teacher}, "which a hiera does not offer; give --distillation.through head"),
        ({**timms, "distillation": teacher}, "which timm:test_vit does not offer; give --distillation.through head"),
        ({"pool": "cls", "distillation": teacher}, "which --pool cls classifies; give --distillation.through head"),
    ):
        with pytest.raises(UserError, match=sentence):
            edgemim.finetune(config_of(**{**nowhere, **changes}))
