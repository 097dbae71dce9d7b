"""Which of its three jobs `edgemim track` does, and that options of another one are refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgemim.commands import track as track_module
from edgemim.commands.track import TrackConfig, track
from edgemim.errors import UserError


@pytest.mark.parametrize(
    ("options", "module", "function"),
    [
        ({"source": "v.mp4"}, "video", "track_video"),
        ({"dataset": "otb", "data": Path("d")}, "evaluate", "evaluate"),
        ({"dataset": "otb", "score": (Path("r"),), "annotations": Path("a")}, "score", "score"),
    ],
)
def test_each_job_goes_to_its_module(
    options: dict[str, Any], module: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    found = importlib.import_module(f"edgemim.commands.tracking.{module}")
    monkeypatch.setattr(found, function, lambda config: (function, config))
    config = TrackConfig(**options)
    assert track(config) == (function, config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": (Path("r"),)}, "--score needs --dataset"),
        ({"score": (Path("r"),), "dataset": "otb", "int8": True}, "int8 would have no effect with --score; leave out"),
        ({"dataset": "otb", "box": "1,2,3,4", "show": True}, "box, show would have no effect with --dataset"),
        ({"dataset": "otb", "annotations": Path("a")}, "annotations would have no effect with --dataset"),
        ({"source": "v.mp4", "protocol": "clean"}, "protocol would have no effect with a video"),
    ],
)
def test_options_of_another_job_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        track(TrackConfig(**options))


def test_every_option_belongs_to_a_job() -> None:
    named = {
        *track_module._OF_VIDEO,
        *track_module._OF_DATASET,
        *track_module._OF_SCORE,
        *track_module._OF_BOTH,
        *("artifact", "key", "int8", "runtime", "threads", "out", "overwrite", "dataset", "score"),
    }
    assert named == set(TrackConfig.model_fields)


def test_the_verb_starts_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from edgemim.cli import main; code = main(['track', 'nowhere.mp4', '--artifact', '.', '--box', '1,1,2,2'])\n"
        "assert code == 2 and 'torch' not in sys.modules, sorted(m for m in sys.modules if m.startswith('torch'))[:3]"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is no artifact" in done.stderr
