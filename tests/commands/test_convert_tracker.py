"""`edgemim convert --from ostrack`: a published tracker becomes a run, another file is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from published import weights_of  # noqa: E402

from edgemim.cli import main  # noqa: E402
from edgemim.export.tracker_session import open_torch_tracker  # noqa: E402
from edgemim.tasks import TrackingTask, load_task  # noqa: E402

torch.set_num_threads(1)


def test_a_published_tracker_becomes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, path = weights_of("ostrack"), tmp_path / "OSTrack_ep0300.pth.tar"
    torch.save({"net": weights, "net_type": "OSTrack", "epoch": 300}, path)
    arguments = ["convert", str(path), "--from", "ostrack", "--out", str(tmp_path / "run")]
    assert main(arguments) == 2 and "no tracker was published; give --heads" in capsys.readouterr().err
    assert main([*arguments, "--heads", "2", "--keep-head"]) == 2 and "leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--heads", "2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "template 16, search region 24 pixels, head 8" in printed and "2 left behind" in printed
    task = load_task(tmp_path / "run")
    assert isinstance(task, TrackingTask) and task.model.size.encoder.heads == 2
    torch.testing.assert_close(task.model.state_dict()["head.size.4.bias"], weights["box_head.conv5_size.bias"])
    tracker = open_torch_tracker(tmp_path / "run")
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    tracker.init(image, (30, 30, 30, 30))
    assert np.isfinite(tracker.update(image).box).all()


def test_a_file_that_is_no_tracker_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mae.pth"
    torch.save({"model": weights_of("mae")}, path)
    assert main(["convert", str(path), "--from", "ostrack", "--out", str(tmp_path / "run")]) == 2
    assert f"{path} holds" in " ".join(capsys.readouterr().err.split())
