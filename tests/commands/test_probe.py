"""`edgemim probe` on real photos: both probes on features that are computed once, at any block, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiny_training import nano_encoder  # noqa: E402

from edgemim.analysis.knn import knn_accuracy  # noqa: E402
from edgemim.cli import main  # noqa: E402
from edgemim.commands import probe as module  # noqa: E402
from edgemim.commands.probe import ProbeConfig, probe  # noqa: E402
from edgemim.data.labelled import LabelledData  # noqa: E402
from edgemim.data.loader import eval_loader  # noqa: E402
from edgemim.edge.images import Preprocessing  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.build import build_encoder  # noqa: E402
from edgemim.models.normalization import Normalization  # noqa: E402
from edgemim.models.sizes import SIZES  # noqa: E402
from edgemim.models.weights import load_encoder, read_facts, save_model  # noqa: E402


def write_run(folder: Path, damaged: bool = False) -> Path:
    """A pre-training run."""
    encoder = nano_encoder()
    if damaged:
        encoder.vit.norm.weight.data[0] = float("nan")  # pyright: ignore
    preprocessing = {"image_size": 32, "crop_pct": 1.0, "mean": (0.48, 0.46, 0.41), "std": (0.23, 0.22, 0.225)}
    facts = {"kind": "encoder", "encoder": encoder.config.model_dump(), "preprocessing": preprocessing}
    save_model(folder / "model", encoder.vit.state_dict(), facts)
    return folder


def test_both_probes_from_the_command_line_see_each_image_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, passes = write_run(tmp_path / "pre"), []
    extract = module.extract_features
    monkeypatch.setattr(module, "extract_features", lambda *given: passes.append(extract(*given)) or passes[-1])
    words = ["probe", str(run), "--data", str(photos), "--probe", "both", "--block", "1", "2", "--k", "5"]
    assert main([*words, "--epochs", "30", "--seeds", "2", "--rates", "0.001", "0.003", "0.01"]) == 0
    results = json.loads((run / "probe" / "run.json").read_text())["results"]
    assert len(passes) == 2  # training and held-out images, all blocks in one pass
    (bank, known), (queries, wanted) = passes
    assert bank.shape == (96, 2 * 24)
    for block, part in ((1, slice(0, 24)), (2, slice(24, 48))):
        expected = knn_accuracy(bank[:, part], known, queries[:, part], wanted, k=5)
        assert results[f"knn_top1_block{block}"] == pytest.approx(expected)
        linear = results[f"linear_block{block}"]
        assert results[f"linear_top1_block{block}"] == linear["top1"] == pytest.approx(sum(linear["top1_by_seed"]) / 2)
        assert linear["top1"] > 70  # chance is 25: random features already tell these photos apart
        assert list(linear["sweep_top1_on_split"]) == ["0.001", "0.003", "0.01"]
    text = capsys.readouterr().out
    assert f"linear top-1 {results['linear_top1_block2']:.2f} ± " in text
    assert text.splitlines()[-1].startswith("next: edgemim finetune --init")


def test_linear_alone_is_of_the_last_block(photos: Path, tmp_path: Path) -> None:
    config = ProbeConfig(run=write_run(tmp_path / "pre"), data=photos, probe="linear", epochs=3, seeds=1, device="cpu")
    results = probe(config)
    assert "linear_top1_block2" in results
    assert not [name for name in results if name.startswith("knn") or name.endswith("block1")]


def test_the_class_token_in_place_of_the_mean(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, passes = write_run(tmp_path / "pre"), []
    extract = module.extract_features
    monkeypatch.setattr(module, "extract_features", lambda *given: passes.append(extract(*given)) or passes[-1])
    config = ProbeConfig(run=run, data=photos, pool="cls", blocks=(1, 2), device="cpu")
    results = probe(config)
    assert results["pool"] == "cls"
    encoder, data = load_encoder(run), LabelledData.open(photos, val_share=config.val_share)
    preprocessing = Preprocessing.model_validate(read_facts(run)["preprocessing"])
    batch = next(iter(eval_loader(data.train, preprocessing, batch_size=8)))
    normalised = Normalization(preprocessing.mean, preprocessing.std).apply(batch.images)
    with torch.inference_mode():
        tokens = encoder.vit.norm(encoder.vit.get_intermediate_layers(normalised, 2, return_prefix_tokens=True)[0][1])  # pyright: ignore
        torch.testing.assert_close(passes[0][0][:8, :24], tokens[:, 0])
        torch.testing.assert_close(passes[0][0][:8, 24:], encoder.vit.forward_features(normalised)[:, 0])
    assert probe(config.model_copy(update={"pool": "mean"})) != results


def test_a_class_token_that_is_not_there_is_refused(photos: Path, tmp_path: Path) -> None:
    size = SIZES["hiera_micro_32"]
    preprocessing = {"image_size": 32, "crop_pct": 1.0}
    facts = {"kind": "encoder", "encoder": size.model_dump(mode="json"), "preprocessing": preprocessing}
    save_model(tmp_path / "model", build_encoder(size).vit.state_dict(), facts)
    with pytest.raises(UserError, match="does not have; leave it out"):
        probe(ProbeConfig(run=tmp_path, data=photos, pool="cls", device="cpu"))


def test_mistakes_are_one_sentence(photos: Path, tmp_path: Path) -> None:
    run, bad = write_run(tmp_path / "pre"), write_run(tmp_path / "bad", damaged=True)
    (tmp_path / "one" / "a").mkdir(parents=True)
    (tmp_path / "one" / "a" / "0.png").write_bytes(next(photos.glob("*/*.png")).read_bytes())
    good = ProbeConfig(run=run, data=photos, probe="linear", epochs=1, seeds=1, device="cpu")
    for change, words in (
        ({"blocks": (3,)}, "are not all between 1 and 2, the encoder's depth"),
        ({"blocks": (0,)}, "are not all between 1 and 2"),
        ({"run": bad}, "features are not finite"),
        ({"run": bad, "probe": "knn"}, "features are not finite"),
        ({"data": tmp_path / "one"}, "at least two"),
        ({"data": None}, "give --data"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            probe(good.model_copy(update=change))
        assert "\n" not in str(caught.value)
