"""`edgemim analyze cka` on real photos: results on disk, what they mean, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from tiny_training import nano_encoder  # noqa: E402

from edgemim.analysis.cka import MinibatchCka  # noqa: E402
from edgemim.cli import main  # noqa: E402
from edgemim.commands.analyze_cka import CkaConfig, cka  # noqa: E402
from edgemim.commands.subjects import Sample, open_subjects  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.weights import save_model  # noqa: E402


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A pre-training run."""
    encoder = nano_encoder()
    save_model(
        tmp_path / "pre" / "model",
        encoder.vit.state_dict(),
        {"kind": "encoder", "encoder": encoder.config.model_dump()},
    )
    return tmp_path / "pre"


def test_from_the_command_line(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["analyze", "cka", "--subject", str(run), "--subject", f"random:{run}", "--data", str(photos)]
    assert main([*words, "--images", "36", "--batch-size", "16", "--out", str(out)]) == 0
    found = json.loads((out / "cka.json").read_text())
    assert (found["images"], found["batches"], found["image_size"]) == (36, 3, 32)
    assert np.shape(found["cka"]) == (3, 3)
    assert list(found["subjects"]) == ["pre", "pre (random)"]
    assert json.loads((out / "run.json").read_text())["results"]["last_layers"] == found["cka"][-1][-1]
    assert Image.open(out / "cka.png").width > 300
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: edgemim analyze attention --subject ")


def test_a_network_with_itself_is_one_on_the_diagonal_and_a_rest_of_three_is_left_out(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    config = CkaConfig(subject=(str(run),), data=photos, images=35, batch_size=16, out=tmp_path / "out", device="cpu")
    found = cka(config)
    assert (found["images"], found["batches"]) == (32, 2)
    values = np.asarray(found["cka"])
    assert np.diag(values) == pytest.approx([1, 1, 1])
    assert values == pytest.approx(values.T)
    subjects = open_subjects(config.subject, 0, torch.device("cpu"))
    measure = MinibatchCka()
    for batch in list(Sample(config, subjects).batches(torch.device("cpu")))[:2]:
        measure.update(subjects[0].features(batch.images), subjects[0].features(batch.images))
    assert values == pytest.approx(measure.compute().numpy(), abs=1e-6)


def test_mistakes_are_one_sentence_and_leave_no_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    good = CkaConfig(subject=(str(run),), data=photos, out=tmp_path / "out", device="cpu")
    for change, words in (
        ({"subject": ()}, "give --subject twice"),
        ({"subject": (str(run),) * 3}, "give --subject twice"),
        ({"batch_size": 3}, "at least 4 images in a batch"),
        ({"images": 3}, "at least 4"),
        ({"data": None}, "give --data"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            cka(good.model_copy(update=change))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_one_sentence(run: Path, photos: Path, tmp_path: Path) -> None:
    encoder = nano_encoder()
    encoder.vit.blocks[1].norm1.weight.data[0] = float("nan")  # pyright: ignore
    facts = {"kind": "encoder", "encoder": encoder.config.model_dump()}
    save_model(tmp_path / "bad" / "model", encoder.vit.state_dict(), facts)
    with pytest.raises(UserError, match="second subject are not finite at its layer 1"):
        cka(
            CkaConfig(
                subject=(str(run), str(tmp_path / "bad")), data=photos, images=8, out=tmp_path / "o", device="cpu"
            )
        )
