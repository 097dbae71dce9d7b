from pathlib import Path

import pytest

from edgemim.commands.finetune import FinetuneConfig
from edgemim.commands.pretrain import PretrainConfig
from edgemim.commands.quickstart import QuickstartConfig
from edgemim.commands.quickstart.arms import best_rate, choosing_job, final_job, pretrain_job
from edgemim.commands.quickstart.config import ARMS, PRETRAINED
from edgemim.config import load_yaml
from edgemim.data.photos import PhotoCrops

CROPS = PhotoCrops(Path("p/unlabelled"), Path("p/train"), Path("p/test"), ("a", "b"))
CONFIG = QuickstartConfig(out=Path("out"), pretrain_lr=2e-3, batch_size=32)


def differences(first, second) -> set[str]:
    a, b = first.config.model_dump(), second.config.model_dump()
    return {key for key in a if a[key] != b[key]}


def test_the_best_rate_wins_and_of_equals_the_smallest():
    assert best_rate({1e-3: 50.0, 2e-3: 60.0, 4e-3: 55.0}) == 2e-3
    assert best_rate({4e-3: 60.0, 1e-3: 60.0, 2e-3: 50.0}) == 1e-3


def test_arms_differ_in_nothing_but_the_method():
    jobs = {arm: pretrain_job(CONFIG, arm, 0, CROPS) for arm in PRETRAINED}
    assert differences(jobs["both"], jobs["distill"]) == {"method", "out"}
    assert differences(jobs["both"], jobs["mim"]) == {"method", "out", "teacher"}
    assert jobs["mim"].config.teacher is None
    finals = {arm: final_job(CONFIG, arm, 0, 1e-3, CROPS) for arm in ARMS}
    for arm in ARMS:
        assert differences(finals["both"], finals[arm]) <= {"init", "out"}


def test_a_rate_is_chosen_without_the_test_crops():
    for arm in ARMS:
        job = choosing_job(CONFIG, arm, 1e-3, CROPS)
        assert "test" not in str(job.config.model_dump(mode="json"))
        assert job.config.data == CROPS.train
    assert final_job(CONFIG, "both", 1, 1e-3, CROPS).config.val == CROPS.test


def test_rates_are_the_peaks_that_were_asked_for():
    assert pretrain_job(CONFIG, "mim", 0, CROPS).config.peak_lr == pytest.approx(2e-3)
    assert final_job(CONFIG, "both", 0, 5e-4, CROPS).config.peak_lr == pytest.approx(5e-4)


def test_each_run_starts_from_its_own_arm_and_seed():
    assert final_job(CONFIG, "mim", 1, 1e-3, CROPS).config.init == "out/pretrain/mim-1"
    assert final_job(CONFIG, "scratch", 1, 1e-3, CROPS).config.init == "scratch"
    assert pretrain_job(CONFIG, "mim", 1, CROPS).folder == Path("out/pretrain/mim-1")
    folders = [final_job(CONFIG, arm, seed, 1e-3, CROPS).folder for arm in ARMS for seed in (0, 1)]
    folders += [choosing_job(CONFIG, arm, lr, CROPS).folder for arm in ARMS for lr in CONFIG.finetune_lrs]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_the_recipes_in_the_repository_are_those_that_run(verb):
    path = Path(__file__).parents[3] / "configs" / verb / "quickstart.yaml"
    written = load_yaml(path, {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[verb]).model_dump()
    default = QuickstartConfig()
    job = pretrain_job(default, "both", 0, CROPS) if verb == "pretrain" else final_job(default, "both", 0, 1e-3, CROPS)
    running = job.config.model_dump()
    own = {"data", "val", "init", "out", "device", "workers", "log_every"}
    assert {key: written[key] for key in written if key not in own} == {
        key: running[key] for key in running if key not in own
    }
