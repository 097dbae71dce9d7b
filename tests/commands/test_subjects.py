"""Networks to analyse: named in every way, and a sample in which classes are mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from tiny_training import nano_encoder, pixels  # noqa: E402

from edgemim.commands.subjects import Sample, SubjectsConfig, open_subjects  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.weights import save_model  # noqa: E402

CPU = torch.device("cpu")
RANDOM_NET = "{name: timm, model: test_efficientnet, pretrained: false}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A pre-training run."""
    encoder = nano_encoder()
    facts = {"kind": "encoder", "encoder": encoder.config.model_dump()}
    save_model(tmp_path / "pre" / "model", encoder.vit.state_dict(), facts)
    return tmp_path / "pre"


def test_by_name_keys_run_and_before_training(run: Path) -> None:
    texts = [str(run), f"random:{run}", RANDOM_NET, str(run)]
    found = open_subjects(texts, 0, CPU)
    assert [subject.name for subject in found] == ["pre", "pre (random)", "test_efficientnet (random)", "pre #2"]
    trained, fresh, _, again = (subject.features(pixels(2))[-1] for subject in found)
    assert torch.equal(trained, again)
    assert not torch.allclose(trained, fresh, atol=0.1)
    assert torch.equal(fresh, open_subjects(texts, 0, CPU)[1].features(pixels(2))[-1])
    assert not torch.equal(fresh, open_subjects(texts, 1, CPU)[1].features(pixels(2))[-1])


def test_a_published_file_is_known_by_its_tensors_or_asked_about(run: Path, tmp_path: Path) -> None:
    state = nano_encoder().vit.state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match=r"may be a file of mae or mae-lite or timm") as caught:
        open_subjects([str(tmp_path / "plain.safetensors")], 0, CPU)
    assert "\n" not in str(caught.value)
    keys = f"{{name: checkpoint, family: timm, heads: 3, path: {tmp_path / 'plain.safetensors'}}}"
    named, own = open_subjects([keys, str(run)], 0, CPU)
    assert named.name == "plain.safetensors"
    assert torch.allclose(named.features(pixels(2))[-1], own.features(pixels(2))[-1], atol=1e-5)
    save_file({f"backbone.{key}": value for key, value in state.items()}, tmp_path / "dino.safetensors")
    with pytest.raises(UserError, match="24 wide, a width that dino did not publish"):
        open_subjects([str(tmp_path / "dino.safetensors")], 0, CPU)


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path, small_finetune_run: Path) -> None:
    (tmp_path / "empty.pth").touch()
    for text, words in (
        ("deit_tinny_patch16_224", "--subject deit_tinny"),
        (f"random:{tmp_path / 'none'}", "no run folder at"),
        (f"random:{small_finetune_run}", "holds a classification model"),
        (str(tmp_path / "empty.pth"), "is refused"),
        ("{name: checkpoint}", "needs its file"),
        (str(tmp_path), "holds no finished model"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_subjects([text], 0, CPU)
        assert "\n" not in str(caught.value)


def test_the_sample_is_balanced_and_a_batch_holds_many_classes(run: Path, photos: Path) -> None:
    config = SubjectsConfig(subject=(str(run), RANDOM_NET), data=photos, images=48, batch_size=16)
    sample = Sample(config, open_subjects(config.subject, 0, CPU))
    assert sample.image_size == 160  # the largest input of the two
    assert np.bincount(sample.folder.labels).tolist() == [12] * 4
    batches = list(sample.batches(CPU))
    assert [batch.images.shape for batch in batches] == [(16, 3, 160, 160)] * 3
    assert all(batch.labels.bincount().tolist() == [4] * 4 for batch in batches)
    small = Sample(config.model_copy(update={"image_size": 64}), open_subjects(config.subject, 0, CPU))
    assert small.image_size == 64


def test_a_finetuned_networks_last_layer_is_behind_the_norm_of_its_pooled_tokens(small_finetune_run: Path) -> None:
    (subject,) = open_subjects([str(small_finetune_run)], 0, CPU)
    images = pixels(2, 64)
    last = subject.features(images)[-1]
    model = subject.network
    with torch.no_grad():
        tokens = model.forward_features(subject.normalization.apply(images))[:, 1:]  # pyright: ignore
        assert torch.allclose(last, model.fc_norm(tokens), atol=1e-5)  # pyright: ignore
    assert len(subject.attention(images)) == 2
