import json
from pathlib import Path

import pytest

from edgemim.cli import main


def written(folder: Path, blocks: list[float], **more: object) -> Path:
    row = {"status": "ok", "model": "m", "file": "onnx-int8", "runtime": "onnxruntime", "batch": 1, "threads": 1}
    row |= {"block_medians_ms": blocks, "disturbed": False, **more}
    folder.mkdir()
    (folder / "benchmark.json").write_text(json.dumps({"machine": {"cpu": "EPYC"}, "rows": [row]}))
    return folder


def test_exit_codes_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path / "before", [10.0, 10.1, 9.9, 10.0, 10.05])
    same = written(tmp_path / "same", [10.1, 10.2, 10.0, 10.1, 10.1])
    slow = written(tmp_path / "slow", [11.9, 12.1, 12.0, 12.2, 11.9])
    assert main(["benchmark", "--compare", str(before), str(same)]) == 0
    assert "no case is slower by more than 5 %" in capsys.readouterr().out
    assert main(["benchmark", "--compare", str(before), str(slow)]) == 3
    assert "m onnx-int8 on onnxruntime, batch 1, 1 threads: 1.20 of the time before" in capsys.readouterr().err
    assert main(["benchmark", "--compare", str(before), str(slow), "--bound", "30"]) == 0
    gone = written(tmp_path / "gone", [10.0] * 5, file="onnx-fp32")
    assert main(["benchmark", "--compare", str(before), str(gone)]) == 2
    assert "share no case" in capsys.readouterr().err
    assert main(["benchmark", str(before), "--compare", str(before), str(slow)]) == 2
    assert "leave the artifacts out" in capsys.readouterr().err
    assert main(["benchmark", str(before), "--bound", "30"]) == 2
    assert "--bound would have no effect" in capsys.readouterr().err


def test_a_disturbed_run_proves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(tmp_path / "before", [10.0, 10.1, 9.9, 10.0, 10.05])
    noisy = written(tmp_path / "noisy", [11.9, 12.1, 12.0, 12.2, 11.9], disturbed=True)
    assert main(["benchmark", "--compare", str(before), str(noisy)]) == 0
    assert "undecided: m onnx-int8" in capsys.readouterr().out
