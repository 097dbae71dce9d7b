"""What a user gets wrong ends in one sentence that names it and the remedy, with exit code 2, before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_harness import Ended

Call = Callable[..., Ended]


MISTAKES: list[tuple[list[str], list[str]]] = [
    (["pretrian"], ["unknown verb 'pretrian'", "did you mean 'pretrain'"]),
    (["pretrain"], ["--data"]),
    (["pretrain", "--data", "no/such/folder"], ["no folder at", "no/such/folder"]),
    (["pretrain", "--data", "EMPTY"], ["no images in", "EMPTY"]),
    (["pretrain", "--data", "IMAGES/coffee/00.png"], ["00.png is a file"]),
    (["pretrain", "--data", "IMAGES", "--method", "mea"], ["unknown name 'mea'", "did you mean 'mae'"]),
    (["pretrain", "--data", "IMAGES", "--encoder", "vit_tyni"], ["unknown name 'vit_tyni'", "vit_tiny"]),
    (["pretrain", "--data", "IMAGES", "--method"], ["--method needs a value"]),
    # What does not compose is refused before an image is looked for.
    (["pretrain", "--data", "no/such", "--method", "d_mae"], ["method d_mae needs", "--teacher checkpoint"]),
    (["pretrain", "--data", "no/such", "--method", "img2vec"], ["method img2vec needs a teacher"]),
    (["pretrain", "--data", "no/such", "--method", "beit"], ["method beit needs a tokenizer"]),
    (["pretrain", "--data", "no/such", "--teacher", "resnet18"], ["method mae has no teacher"]),
    (
        ["pretrain", "--data", "no/such", "--teacher", "resnt50"],
        ["'resnt50'", "did you mean 'resnet50'", "model of timm"],
    ),
    (["pretrain", "--data", "no/such", "--method.mask-ratio", "0.999"], ["leaves none of 16 patches visible"]),
    (["pretrain", "--data", "IMAGES", "--epochs", "-1"], ["epochs", "greater than 0"]),
    (["pretrain", "--data", "IMAGES", "--batch-size", "1000"], ["batch_size 1000", "64 images"]),
    (["pretrain", "--data", "IMAGES", "--batch-size", "9", "--accumulate", "2"], ["does not divide", "multiple of 2"]),
    (["pretrain", "--data", "IMAGES", "--device", "tpu"], ["unknown device 'tpu'"]),
    (["pretrain", "--data", "IMAGES", "--encoder.heads", "5"], ["width 48", "heads 5"]),
    (["pretrain", "--data", "IMAGES", "--config", "TYPO"], ["TYPO", "unknown key 'learning_rte'"]),
    (["pretrain", "--data", "IMAGES", "--config", "NESTED"], ["NESTED", "mask_ration", "did you mean 'mask_ratio'"]),
    (["pretrain", "--data", "IMAGES", "--config", "TYPE"], ["TYPE", "'epochs'"]),
    (["pretrain", "--data", "IMAGES", "--config", "BROKEN"], ["BROKEN is not valid YAML"]),
    (["pretrain", "--data", "IMAGES", "--config", "absent.yaml"], ["cannot read config absent.yaml"]),
    (["finetune", "--data", "IMAGES/coffee", "--init", "scratch"], ["no classes", "one folder a class"]),
    (["finetune", "--data", "IMAGES", "--init", "no/run"], ["no run folder at no/run"]),
    (["finetune", "--data", "IMAGES", "--init", "timm:vit_tinny"], ["timm knows no model 'vit_tinny'"]),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_one_sentence(
    edgemim_here: Call,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    Path("IMAGES").symlink_to(images)
    Path("TYPO").write_text("learning_rte: 0.1\n")
    Path("NESTED").write_text("method: {name: mae, mask_ration: 0.5}\n")
    Path("TYPE").write_text("epochs: many\n")
    Path("BROKEN").write_text("epochs: [1, 2\n  x: }\n")
    small = [] if any(word.startswith("--encoder") and "." not in word for word in words) else ["--encoder", "vit_nano"]
    batch = [] if "--batch-size" in words else ["--batch-size", "16"]
    ended = edgemim_here([*words, *(small + batch if len(words) > 1 and "needs" not in expected[0] else [])])
    ended.refused(*expected)
    assert not Path("runs").exists(), "a refused run left a folder"


def test_an_unknown_flag_exits_2_with_the_closest_one(edgemim_here: Call, images: Path) -> None:
    ended = edgemim_here(["pretrain", "--data", images, "--epoch", "3"])
    assert ended.code == 2, ended.output
    assert "--epochs" in ended.output
    assert "Traceback" not in ended.output


def test_an_evil_pickle_is_refused_and_never_run(edgemim_here: Call, images: Path, tmp_path: Path) -> None:
    """As weights to start from, and put in a checkpoint's place."""
    import pickle

    sign = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (sign,)

    weights = tmp_path / "weights.pt"
    weights.write_bytes(pickle.dumps(Evil()))
    small = ["--batch-size", "16", "--epochs", "1", "--warmup-epochs", "0", "--data", images]
    timm = ["--init", "timm:test_vit", "--weights", weights]
    edgemim_here(["finetune", *small, *timm, "--out", tmp_path / "a"]).refused(str(weights), "refused")
    run = tmp_path / "b" / "checkpoints" / "step-000000001"
    run.mkdir(parents=True)
    shutil.copy(weights, run / "model.safetensors")
    nano = ["--encoder", "vit_nano", "--out", tmp_path / "b", "--resume"]
    edgemim_here(["pretrain", *small, *nano]).refused("SHA256SUMS", "no whole checkpoint")
    assert not sign.exists()
