"""A cached teacher gives what the teacher gives, to float16, and a run with it is the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import NORMALIZATION, keys_of, nano_encoder

from edgemim.cli import main
from edgemim.data.folders import ImageFolder, scan_folder
from edgemim.data.loader import Batch, build_loader
from edgemim.data.transforms import PretrainTransform
from edgemim.errors import UserError
from edgemim.methods.feature_distill import FeatureDistillConfig
from edgemim.methods.img2vec import Img2VecConfig
from edgemim.models.sizes import VitConfig
from edgemim.teachers import Teacher, TimmTeacher
from edgemim.teachers.cached import CachedTeacher, open_cached

VIEW = PretrainTransform(crop="none", flip=False)
SIZE = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=32)


class Counting(torch.nn.Module):
    """Counts the images that a network is asked about."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.images = network, 0

    def forward_intermediates(self, x: torch.Tensor, **options) -> list[torch.Tensor]:
        self.images += len(x)
        return self.network.forward_intermediates(x, **options)  # pyright: ignore


def teacher_of(seed: int = 0) -> Teacher:
    torch.manual_seed(seed)
    return TimmTeacher(model="test_resnet", pretrained=False).build(32, (4, 4))


def counted(teacher: Teacher) -> Counting:
    """From here on, the images that reach the teacher's network are counted."""
    teacher.model = Counting(teacher.model)
    return teacher.model


@pytest.fixture(scope="module")
def folder(photos: Path) -> ImageFolder:
    return scan_folder(photos, cache=False)


def batches(folder: ImageFolder, steps: int = 10, seed: int = 0, size: int = 24) -> Iterator[Batch]:
    """120 photos are 5 steps of 24 an epoch."""
    return iter(build_loader(folder, VIEW.build(32), batch_size=size, seed=seed, total_steps=steps))


def opened(teacher: Teacher, root: Path, folder: ImageFolder) -> CachedTeacher:
    return open_cached(teacher, root, folder, VIEW, 32, limit_gib=1.0)


def test_features_are_the_teachers_and_computed_once(folder: ImageFolder, tmp_path: Path) -> None:
    teacher = teacher_of()
    cached = opened(teacher, tmp_path, folder)
    network = counted(teacher)
    seen = set()
    for batch in cached.follow(batches(folder)):
        images = batch.images.float() / 255
        found = cached(images)
        torch.testing.assert_close(found, cached(images), rtol=0, atol=0)
        new = set(batch.indices.tolist()) - seen
        seen |= new
        before = network.images
        expected = teacher(images)
        network.images = before
        torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-5)
        assert found.dtype == torch.float32
    assert len(seen) == 120
    assert network.images == 120 + 8  # once a process, a piece of what is there is compared
    again = opened(teacher_of(), tmp_path, folder)
    network = counted(again.teacher)
    for batch in again.follow(batches(folder, seed=5)):
        again(batch.images.float() / 255)
    assert network.images == 8
    assert again.store.counts.computed == 0


def test_a_row_does_not_depend_on_which_others_were_missing(folder: ImageFolder, tmp_path: Path) -> None:
    """So a run that was killed between two rows of a batch goes on with the same bits."""
    whole, parts = (opened(teacher_of(), tmp_path / name, folder) for name in ("whole", "parts"))
    batch = next(batches(folder))
    images = batch.images.float() / 255
    next(whole.follow([batch]))
    expected = whole(images)
    rows = expected.half().numpy()
    for place in (0, 3, 4, 17):
        parts.store.write(int(batch.indices[place]), batch.images[place].numpy(), rows[place])
    next(parts.follow([batch]))
    assert torch.equal(parts(images), expected)
    assert parts.store.counts.computed == 24


@pytest.mark.parametrize("method", [FeatureDistillConfig(), Img2VecConfig()], ids=lambda method: method.name)
def test_the_loss_is_that_without_a_cache(method, folder: ImageFolder, tmp_path: Path) -> None:
    teacher = teacher_of()
    live = method.build(nano_encoder(SIZE), NORMALIZATION, teacher)
    for state in ("empty", "full"):
        cached = opened(teacher, tmp_path, folder)
        model = method.build(nano_encoder(SIZE), NORMALIZATION, cached)
        model.load_state_dict(live.state_dict())
        for batch in cached.follow(batches(folder, steps=3)):
            keys = keys_of(len(batch))
            found, expected = (m(batch.images, keys, None) for m in (model, live))
            torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=0)
            found.loss.backward()
        assert cached.store.counts.computed == (72 if state == "empty" else 0)


def test_only_batches_that_it_follows(folder: ImageFolder, tmp_path: Path) -> None:
    cached = opened(teacher_of(), tmp_path, folder)
    with pytest.raises(RuntimeError, match=r"follow"):
        cached(torch.rand(24, 3, 32, 32))
    for _ in cached.follow(batches(folder, steps=1)):
        with pytest.raises(RuntimeError, match=r"follow"):
            cached(torch.rand(3, 3, 32, 32))
    with pytest.raises(RuntimeError, match=r"follow"):
        cached(torch.rand(24, 3, 32, 32))


def test_filling_upfront_shows_what_training_shows(folder: ImageFolder, tmp_path: Path) -> None:
    cached = opened(teacher_of(), tmp_path, folder)
    for rank in range(2):
        assert cached.store.filled == (0, 120 - 120 // 2)[rank]
        cached.fill(folder, VIEW, 32, (rank, 2) if not rank else (0, 1))
    assert (cached.store.filled, cached.store.counts.computed) == (120, 120)
    network = counted(cached.teacher)
    for batch in cached.follow(batches(folder, steps=5)):
        cached(batch.images.float() / 255)
    assert cached.store.counts.changed == 0
    assert network.images == 8


def test_an_image_that_cannot_be_read_is_left_out(photos: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes((photos / "rocket" / "00.png").read_bytes())
    (tmp_path / "data" / "broken.png").write_bytes(b"no picture")
    few = scan_folder(tmp_path / "data", cache=False)
    for computed in (2, 0):  # the second time it is the only one that is missing
        cached = opened(teacher_of(), tmp_path / "cache", few)
        cached.fill(few, VIEW, 32, (0, 1))
        assert cached.store.missing().tolist() == [2]
        assert cached.store.counts.computed == computed


def test_rows_of_another_function_are_found_out(
    folder: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = opened(teacher_of(0), tmp_path, folder)
    first.fill(folder, VIEW, 32, (0, 1))
    other = teacher_of(1)
    liar = CachedTeacher(other, first.store)
    batch = next(liar.follow(batches(folder, steps=1)))
    torch.testing.assert_close(liar(batch.images / 255), other(batch.images / 255), rtol=2**-10, atol=1e-5)
    assert "features of another function" in capsys.readouterr().err
    assert liar.store.filled == 24


def test_features_beyond_float16_are_refused(folder: ImageFolder, tmp_path: Path) -> None:
    teacher = teacher_of()
    with torch.no_grad():
        teacher.std /= 1e9
    cached = opened(teacher, tmp_path, folder)
    batch = next(cached.follow(batches(folder, steps=1)))
    with pytest.raises(UserError, match="beyond float16"):
        cached(batch.images / 255)
    assert cached.store.filled == 0


def run(words: list[str], out: Path) -> dict:
    assert main([*words, "--out", str(out)]) == 0
    record = json.loads((out / "run.json").read_text())
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    return {**record["results"], "losses": losses}


def test_runs_from_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "method: img2vec\nencoder: vit_nano\nteacher: {name: timm, model: test_resnet, pretrained: false}\n"
        "transform: {crop: none, flip: false}\nepochs: 2\nwarmup_epochs: 0\nbatch_size: 24\nworkers: 0\nlog_every: 1\n"
        "picture_every: 0\nknn_every: 0\n"
    )
    words = ["pretrain", "--config", str(recipe), "--data", str(photos)]
    cache = ["--teacher-cache", str(tmp_path / "cache")]
    plain, cold = run(words, tmp_path / "plain"), run([*words, *cache], tmp_path / "cold")
    text = capsys.readouterr().out
    assert "120 images × 16 tokens" in text
    assert "0 of 120 images are there" in text
    np.testing.assert_allclose(cold["losses"], plain["losses"], rtol=2e-3)
    assert (cold["teacher_cache"]["computed"], cold["teacher_cache"]["filled"]) == (120, 120)
    warm = run([*words, *cache], tmp_path / "warm")
    assert warm["losses"] == cold["losses"]  # the same rows, whoever computed them
    assert (warm["teacher_cache"]["computed"], warm["teacher_cache"]["damaged"]) == (0, 0)
    upfront = run(
        [*words, "--teacher-cache", str(tmp_path / "other"), "--teacher-cache-upfront", "--epochs", "0.2"],
        tmp_path / "upfront",
    )
    assert upfront["teacher_cache"]["computed"] == 120
    np.testing.assert_allclose(upfront["losses"], plain["losses"][: len(upfront["losses"])], rtol=2e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "feature_distill"], "needs a teacher"),
        (["--method", "mae", "--teacher", "efficientnet_lite0"], "mae has no teacher"),
        (["--method", "mae"], "method mae does not read here: it has no teacher"),
        (["--method", "d_mae", "--teacher", "vit_tiny_patch16_224"], "its target depends on the mask"),
        (
            ["--method", "img2vec", "--teacher", "efficientnet_lite0"],
            "transform.crop random_resized and transform.flip",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused_before_anything_is_loaded(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["pretrain", "--data", str(tmp_path / "none"), "--teacher-cache", str(tmp_path / "cache"), *words]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
