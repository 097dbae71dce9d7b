"""`edgemim analyze effective-rank` on real photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from tiny_training import nano_encoder  # noqa: E402

from edgemim.analysis.token_diversity import effective_rank as rank_of  # noqa: E402
from edgemim.cli import main  # noqa: E402
from edgemim.commands.analyze_rank import EffectiveRankConfig, effective_rank  # noqa: E402
from edgemim.commands.subjects import Sample, open_subjects  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.weights import save_model  # noqa: E402


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A pre-training run."""
    encoder = nano_encoder()
    facts = {"kind": "encoder", "encoder": encoder.config.model_dump()}
    save_model(tmp_path / "pre" / "model", encoder.vit.state_dict(), facts)
    return tmp_path / "pre"


def test_from_the_command_line(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, random = tmp_path / "out", "{name: timm, model: test_efficientnet, pretrained: false}"
    words = ["analyze", "effective-rank", "--subject", str(run), "--subject", random, "--data", str(photos)]
    assert main([*words, "--images", "10", "--image-size", "64", "--batch-size", "6", "--out", str(out)]) == 0
    found = json.loads((out / "effective_rank.json").read_text())
    layers = found["subjects"]["pre"]["values"]
    assert len(layers) == 3 and layers[0]["tokens"] == 16
    config = EffectiveRankConfig(subject=(str(run),), data=photos, images=10, image_size=64, device="cpu")
    subject = open_subjects([str(run)], 0, torch.device("cpu"))[0]
    (batch,) = Sample(config, [subject]).batches(torch.device("cpu"))
    for layer, tokens in zip(layers, subject.features(batch.images), strict=True):
        assert layer["effective_rank"]["raw"]["mean"] == pytest.approx(float(rank_of(tokens).mean()), rel=1e-4)
        assert layer["effective_rank"]["raw"]["mean"] <= 16
    assert Image.open(out / "effective_rank.png").width > 600
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: edgemim analyze attention")


def test_mistakes_are_one_sentence_and_leave_no_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    good = EffectiveRankConfig(subject=(str(run),), data=photos, out=tmp_path / "out", device="cpu")
    for change, words in (({"subject": ()}, "give --subject NAME"), ({"data": None}, "give --data")):
        with pytest.raises(UserError, match=words) as caught:
            effective_rank(good.model_copy(update=change))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
