"""`edgemim analyze attention` on real photos: figures of the encoder's own logits, the published form, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from tiny_training import nano_encoder  # noqa: E402

from edgemim.cli import main  # noqa: E402
from edgemim.commands.analyze_attention import AttentionConfig, attention  # noqa: E402
from edgemim.commands.subjects import Sample, open_subjects  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.weights import save_model  # noqa: E402

CPU = torch.device("cpu")


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
    words = ["analyze", "attention", "--subject", str(run), "--subject", f"random:{run}", "--data", str(photos)]
    assert main([*words, "--images", "12", "--out", str(out)]) == 0
    found = json.loads((out / "attention.json").read_text())
    assert list(found["blocks"]) == ["pre", "pre (random)"]
    assert found["subjects"]["pre"]["patch_px"] == 8
    for blocks in found["blocks"].values():
        assert list(blocks) == ["1", "2"]
        for figures in blocks.values():
            assert all(len(figures[kind]["heads"]) == 3 for kind in ("distance_px", "entropy_nats", "nmi"))
            assert 0 <= figures["nmi"]["mean"] <= 1 and figures["entropy_nats"]["mean"] <= np.log(16)
    assert Image.open(out / "attention.png").width > 600
    text = capsys.readouterr().out
    assert f"{found['blocks']['pre']['1']['distance_px']['mean']:.3g} (" in text
    assert text.splitlines()[-1].startswith("next: edgemim analyze cka --subject ")


def test_figures_are_those_of_the_logits_in_true_pixels_and_as_published(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    config = AttentionConfig(
        subject=(str(run),), data=photos, images=10, batch_size=8, out=tmp_path / "a", device="cpu"
    )
    found = attention(config)["blocks"]["pre"]
    subject = open_subjects(config.subject, 0, CPU)[0]
    encoder = nano_encoder().eval()
    away = np.asarray([[np.hypot(a // 4 - b // 4, a % 4 - b % 4) for b in range(16)] for a in range(16)])
    batches = []
    for batch in Sample(config, [subject]).batches(CPU):
        with torch.no_grad():
            logits = encoder(subject.normalization.apply(batch.images), attention=(2,)).attention[2]
        probability = logits[:, :, 1:, 1:].softmax(-1).numpy()
        batches.append((probability * away).sum(-1).mean(-1))
    assert [len(batch) for batch in batches] == [8, 2]
    expected = 8 * np.concatenate(batches).mean(0)
    assert found[2]["distance_px"]["heads"] == pytest.approx(expected, rel=1e-4)
    published = attention(config.model_copy(update={"published": True, "out": tmp_path / "b"}))["blocks"]["pre"]
    expected = 14 * (batches[0].mean(0) + batches[1].mean(0)) / 2
    assert published[2]["distance_px"]["heads"] == pytest.approx(expected, rel=1e-4)


def test_mistakes_are_one_sentence_and_leave_no_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    good = AttentionConfig(subject=(str(run),), data=photos, out=tmp_path / "out", device="cpu")
    convolutional = "{name: timm, model: test_efficientnet, pretrained: false}"
    for change, words in (
        ({"subject": ()}, "give --subject NAME"),
        ({"subject": (convolutional,)}, "shows no attention over patches; give a vision transformer"),
        ({"data": None}, "give --data"),
        ({"data": tmp_path / "none"}, "no folder at"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            attention(good.model_copy(update=change))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
