"""`edgemim convert`: published files become runs that the other verbs accept, or are refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from edgemim.cli import main  # noqa: E402
from edgemim.commands.convert import ConvertConfig, convert  # noqa: E402
from edgemim.commands.evaluate import EvaluateConfig, evaluate  # noqa: E402
from edgemim.commands.export import ExportConfig, export_model  # noqa: E402
from edgemim.commands.finetune import FinetuneConfig, finetune  # noqa: E402
from edgemim.commands.probe import ProbeConfig, probe  # noqa: E402
from edgemim.config import load_yaml  # noqa: E402
from edgemim.edge.artifact import Artifact  # noqa: E402
from edgemim.edge.images import IMAGENET_MEAN  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert import FAMILIES, FamilyName  # noqa: E402
from edgemim.models.encoder import TokenMask  # noqa: E402
from edgemim.models.weights import load_encoder, read_facts  # noqa: E402
from edgemim.teachers import CheckpointTeacher, masked_teacher  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def mae_file(tmp_path: Path) -> Path:
    """A masked autoencoder as its authors save one."""
    path = tmp_path / "mae.pth"
    torch.save({"model": weights_of("mae"), "epoch": 799}, path)
    return path


def test_a_published_file_becomes_a_run(mae_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["convert", str(mae_file), "--from", "mae", "--heads", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    plain = " ".join(printed.split())
    assert "30 of 50 tensors used, 20 left behind" in plain
    for words in ("decoder: pre-training alone", "mask token", "heads: 2, as given", "column in the first half"):
        assert words in plain
    assert f"next: edgemim finetune --init {out} --data DIR" in printed
    record = json.loads((out / "run.json").read_text())
    assert (record["verb"], record["status"]) == ("convert", "done")
    results = record["results"]
    keys = {entry["key"]: entry for entry in results["keys"]}
    assert keys.keys() == weights_of("mae").keys()
    assert all(entry["becomes"] or entry["note"] for entry in results["keys"])
    assert results["used"] == sum(entry["becomes"] is not None for entry in results["keys"])
    assert keys["decoder_pos_embed"]["becomes"] is None
    encoder = load_encoder(out)
    for key, value in encoder.vit.state_dict().items():
        assert torch.equal(value, weights_of("mae")[key]), key
    assert load_yaml(out / "config.yaml", ConvertConfig).family == "mae"
    assert read_facts(out)["preprocessing"]["mean"] == [0.485, 0.456, 0.406]


CASES = {
    "d_mae": "mae-lite",
    "d2_mae": "mae-lite",
    "deepmim": "deepmim",
    "mirl": "mirl",
    "mff": "mff",
    "simmim_vit": "simmim",
    "mocov3": "mocov3",
    "vit_finetune": "deit",
    "hiera_mae": "hiera",
}


@pytest.mark.parametrize(("case", "family"), CASES.items())
def test_every_family_becomes_an_encoder_that_teaches(case: str, family: str, tmp_path: Path) -> None:
    path = tmp_path / "published.safetensors"
    save_file(weights_of(case), path)
    heads = None if family in ("simmim", "hiera") else 2
    results = convert(ConvertConfig(file=path, family=family, heads=heads, out=tmp_path / "run"))  # pyright: ignore
    assert results["tensors"] == len(weights_of(case))
    size = load_encoder(tmp_path / "run").config
    teacher = masked_teacher(CheckpointTeacher(path=tmp_path / "run"), size)
    found = teacher(
        torch.rand(1, 3, size.image_size, size.image_size), TokenMask.of(torch.zeros(1, 16).bool()), taps=[size.depth]
    )
    assert found.last.shape == (1, 16 + size.prefix, size.width)
    assert teacher.normalization.mean == IMAGENET_MEAN


def test_paddles_own_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mirl.pdparams"
    path.write_bytes(pickle.dumps({key: value.numpy() for key, value in weights_of("mirl").items()}, protocol=2))
    convert(ConvertConfig(file=path, family="mirl", heads=2, out=tmp_path / "run"))
    found = load_encoder(tmp_path / "run").vit.state_dict()["blocks.2.mlp.fc1.weight"]
    assert torch.equal(found, weights_of("mirl")["blocks.2.mlp.fc1.weight"].T)


def test_probe_and_finetune_accept_the_run(mae_file: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    convert(ConvertConfig(file=mae_file, family="mae", heads=2, out=run))
    figures = probe(ProbeConfig(run=run, data=photos, device="cpu"))
    assert 0 <= figures["knn_top1_block2"] <= 100
    tuned = tmp_path / "tuned"
    quick = {"batch_size": 32, "epochs": 1.0, "warmup_epochs": 0.0, "workers": 0, "device": "cpu"}
    results = finetune(FinetuneConfig(init=str(run), data=photos, out=tuned, **quick))
    assert "28 tensors loaded; dropped: norm.bias, norm.weight;" in results["init"]
    assert read_facts(tuned)["architecture"]["vit"]["width"] == 16


@pytest.fixture
def tuned_file(small_finetune_run: Path, tmp_path: Path) -> Path:
    """A fine-tuned network under the names that MAE's authors publish theirs."""
    path = tmp_path / "finetuned.safetensors"
    save_file(load_file(small_finetune_run / "model" / "model.safetensors"), path)
    return path


def test_a_kept_head_gives_the_accuracy_that_the_network_had(
    tuned_file: Path, small_finetune_run: Path, tmp_path: Path
) -> None:
    data = small_finetune_run.parent / "data"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(read_facts(small_finetune_run)["labels"]))
    run = tmp_path / "run"
    own: dict = {"mean": (0.4, 0.4, 0.4), "std": (0.25, 0.25, 0.25)}
    results = convert(
        ConvertConfig(file=tuned_file, family="mae", heads=3, keep_head=True, labels=names, out=run, **own)  # pyright: ignore
    )
    assert results["used"] == results["tensors"]
    facts = read_facts(run)
    facts["preprocessing"]["crop_pct"] = 1.0  # as this network was trained
    (run / "model" / "model.json").write_text(json.dumps(facts))
    found = evaluate(EvaluateConfig(run=run, data=data, out=tmp_path / "a", device="cpu"))
    expected = evaluate(EvaluateConfig(run=small_finetune_run, data=data, out=tmp_path / "b", device="cpu"))
    assert found["top1"] == expected["top1"] > 50
    export_model(ExportConfig(run=run, data=data, parity_images=8))
    assert Artifact.open(run / "artifact").manifest.labels == tuple(facts["labels"])


def test_a_class_tokens_head_is_kept_as_such(tmp_path: Path) -> None:
    weights = weights_of("mae")
    weights = {key: value for key, value in weights.items() if not key.startswith(("decoder", "mask"))}
    weights |= {"head.weight": torch.randn(3, 16), "head.bias": torch.randn(3)}
    save_file(weights, tmp_path / "deit.safetensors")
    config = ConvertConfig(
        file=tmp_path / "deit.safetensors", family="deit", heads=2, keep_head=True, out=tmp_path / "run"
    )
    convert(config)
    from edgemim.tasks import load_task

    task = load_task(tmp_path / "run")
    assert task.labels == ("0", "1", "2")
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    encoder = convert_encoder(tmp_path)
    with torch.no_grad():
        tokens = encoder(task.normalization.apply(images)).last
        expected = tokens[:, 0] @ weights["head.weight"].T + weights["head.bias"]
        torch.testing.assert_close(task.predict(images), expected, rtol=1e-4, atol=1e-5)


def convert_encoder(folder: Path) -> torch.nn.Module:
    """The same file as an encoder."""
    convert(ConvertConfig(file=folder / "deit.safetensors", family="deit", heads=2, out=folder / "encoder"))
    return load_encoder(folder / "encoder")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of a refused conversion."""
    assert main(["convert", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


def test_mistakes_are_one_sentence(mae_file: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(mae_file)
    assert "give the FILE" in refused(capsys)
    assert "give --from" in refused(capsys, file)
    sentence = refused(capsys, file, "--from", "simmim")
    assert "mae.pth looks like an MAE checkpoint (has decoder_blocks.0" in sentence
    assert "not simmim; give --from mae" in sentence
    assert "give --heads N" in refused(capsys, file, "--from", "mae")
    assert "no weights file at" in refused(capsys, "absent.pth", "--from", "mae")
    assert "holds no classifier" in refused(capsys, file, "--from", "mae", "--heads", "2", "--keep-head")
    assert "without --keep-head" in refused(capsys, file, "--from", "mae", "--heads", "2", "--labels", "x.txt")
    extra = {**weights_of("mae"), "blocks.0.surprise": torch.zeros(1)}
    torch.save(extra, tmp_path / "extra.pth")
    assert "extra.pth holds blocks.0.surprise, which no part of a mae checkpoint is named" in refused(
        capsys, "extra.pth", "--from", "mae", "--heads", "2"
    )
    assert not (tmp_path / "runs").exists()  # a refused file leaves nothing behind


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pdparams"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_or_empty_file_is_one_sentence(tmp_path: Path, capsys, suffix: str, share: float) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(weights_of("mae"), whole)
    elif suffix == ".safetensors":
        save_file(weights_of("mae"), whole)
    else:
        whole.write_bytes(pickle.dumps({key: value.numpy() for key, value in weights_of("mae").items()}))
    content = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(share * len(content))])
    assert f"cut{suffix}" in refused(capsys, str(path), "--from", "mae", "--heads", "2")


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


@pytest.mark.parametrize("suffix", [".pth", ".pdparams", ".pkl"])
def test_an_evil_file_is_refused_and_never_executed(tmp_path: Path, capsys, suffix: str) -> None:
    trace, path = tmp_path / "executed", tmp_path / f"evil{suffix}"
    content = {"model": {"cls_token": torch.zeros(1, 1, 4)}, "args": Evil(trace)}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"cls_token": np.zeros(3, "float32"), "b": Evil(trace)}))
    assert "posix.system" in refused(capsys, str(path), "--from", "mae")
    assert not trace.exists()


def test_labels_of_another_count_are_refused(tuned_file: Path, tmp_path: Path, capsys) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    words = [str(tuned_file), "--from", "mae", "--heads", "3", "--keep-head", "--labels", str(names)]
    assert "names 2 classes, the classifier has 4" in refused(capsys, *words)


def test_an_old_run_is_not_lost_unasked(mae_file: Path, tmp_path: Path, capsys) -> None:
    words = [str(mae_file), "--from", "mae", "--heads", "2", "--out", str(tmp_path / "run")]
    assert main(["convert", *words]) == 0
    capsys.readouterr()
    message = refused(capsys, *words)
    assert "is not empty" in message and "--overwrite" in message and "--resume" not in message
    assert main(["convert", *words, "--overwrite"]) == 0


def test_the_flag_names_every_family() -> None:
    assert set(get_args(FamilyName)) == FAMILIES.keys()


def test_a_published_case_converts_from_the_command_line(shared: Path, tmp_path: Path) -> None:
    """The whole-size weights of the published cases, where they are at hand."""
    families = {"mae": "mae", "mae_lite": "mae-lite", "d2_mae": "mae-lite", "deepmim": "deepmim", "mirl": "mirl"}
    families |= {"mff": "mff", "simmim_vit": "simmim", "mocov3": "mocov3", "vit_rpe": "mae-lite", "vit_finetune": "mae"}
    for case, family in families.items():
        file = shared / "golden" / case / "weights.safetensors"
        facts = json.loads((shared / "golden" / case / "case.json").read_text())["config"]
        heads = facts.get("num_heads") or facts["student"]["num_heads"]
        results = convert(ConvertConfig(file=file, family=family, heads=heads, out=tmp_path / case))  # pyright: ignore
        sizes = facts.get("student", facts)
        assert results["encoder"]["width"] == sizes.get("embed_dim", sizes.get("embed_dims"))
        assert results["encoder"]["image_size"] == facts["img_size"]


def test_published_hiera_classifier_gives_the_published_logits(shared: Path, tmp_path: Path) -> None:
    from edgemim.tasks import load_task

    folder = shared / "golden" / "hiera_cls"
    heads = json.loads((folder / "case.json").read_text())["config"]["num_heads"]
    convert(
        ConvertConfig(
            file=folder / "weights.safetensors", family="hiera", heads=heads, keep_head=True, out=tmp_path / "run"
        )
    )
    with torch.no_grad():
        logits = load_task(tmp_path / "run").model(load_file(folder / "inputs.safetensors")["images"])
    torch.testing.assert_close(logits, load_file(folder / "outputs.safetensors")["logits"], rtol=1e-4, atol=1e-5)


def test_a_bare_function_refuses_as_the_verb_does(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the FILE"):
        convert(ConvertConfig())
