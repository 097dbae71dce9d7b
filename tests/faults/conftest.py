"""What the fault tests share: 64 small photos, undisturbed runs to compare with, and a launcher that cleans up."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from fault_harness import PRETRAIN, Ended, Launcher, Run

from edgemim.cli import main


@pytest.fixture(scope="session")
def images(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 photos of 64 x 64 pixels in four class folders."""
    root = tmp_path_factory.mktemp("faults") / "images"
    for folder in sorted(photos.iterdir()):
        (root / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:16]:
            shutil.copy(path, root / folder.name)
    return root


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """Starts processes; none outlives the test."""
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.clean_up()


@pytest.fixture(scope="module")
def module_launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """A launcher for a story that several tests of a module look at."""
    launcher = Launcher(tmp_path_factory.mktemp("story"))
    yield launcher
    launcher.clean_up()


def _undisturbed(images: Path, folder: Path, processes: int) -> Run:
    run = Run(folder / "run")
    ended = Launcher(folder).run(
        [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "0"], processes=processes
    )
    assert ended.code == 0, ended.output
    return run


@pytest.fixture(scope="session")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run on one process that nothing happened to. Read only."""
    return _undisturbed(images, tmp_path_factory.mktemp("reference"), 1)


@pytest.fixture(scope="session")
def reference_of_two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same on two processes. Read only."""
    return _undisturbed(images, tmp_path_factory.mktemp("reference-of-two"), 2)


@pytest.fixture
def copy_of_reference(reference: Run, tmp_path: Path) -> Run:
    """A finished run to do harm to."""
    return Run(shutil.copytree(reference.folder, tmp_path / "copy"))


@pytest.fixture
def edgemim_here(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[Sequence[object]], Ended]]:
    """Calls the command line inside this process: for faults that lie in files, not in processes."""

    def call(words: Sequence[object]) -> Ended:
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as exit_:  # an unknown flag ends inside the argument parser
            code = int(exit_.code or 0)
        captured = capfd.readouterr()
        return Ended(code, captured.out + captured.err)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 does for the processes
    yield call
    torch.set_num_threads(threads)
