import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from small_run import PHOTOS
from tiny_artifact import tiny_artifact
from tiny_tracker import tiny_tracker

from edgemim.cli import main
from edgemim.commands.benchmark import BenchmarkConfig, benchmark, command_line
from edgemim.commands.benchmark_sources import RUNTIMES
from edgemim.edge.machine import usable_cpus
from edgemim.edge.roofline import Roofline
from edgemim.errors import UserError

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
QUICK = {"seconds": 0.02, "runs": 5, "threads": (1,)}


@pytest.fixture(autouse=True)
def _known_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had been measured, which takes seconds for each thread count."""
    roof = Roofline(1, 100.0, 400.0, 10.0, {"fp32": "x", "int8": "y"}, 0.0)
    monkeypatch.setattr("edgemim.commands.benchmark.measure_roofline", lambda threads: replace(roof, threads=threads))


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    """As if these packages were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find_spec(name, *rest)
    )


def by_case(rows: list[dict]) -> dict[tuple, dict]:
    return {(row["file"], row["runtime"], row.get("batch"), row.get("threads")): row for row in rows}


def test_every_file_on_every_runtime_that_reads_it(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", int8=True)
    result = benchmark(BenchmarkConfig(artifacts=(artifact.folder,), batch=(1, 3), **QUICK))
    rows = by_case(result["rows"])
    runtimes = ["onnxruntime", "openvino"] if HAS_OPENVINO else ["onnxruntime"]
    measured = {key for key, row in rows.items() if row["status"] == "ok"}
    assert measured == {
        (file, runtime, batch, 1) for file in ("onnx-fp32", "onnx-int8") for runtime in runtimes for batch in (1, 3)
    }
    for key in measured:
        row = rows[key]
        assert 0 < row["latency_p50_ms"] <= row["latency_p90_ms"] <= row["latency_p99_ms"]
        assert row["throughput_images_per_s"] == pytest.approx(1000 * key[2] / row["latency_mean_ms"])
        assert row["runs"] >= 5
        assert row["memory_peak_mib"] > row["memory_added_mib"] > 1
        assert row["model_size_mib"] == artifact.size_bytes(key[0]) / 2**20
        assert row["precision"] == key[0].removeprefix("onnx-")
        assert row["version"]
        assert 0 <= row["foreign_load"] <= 1
        assert row["baseline"] == "onnx-fp32 on onnxruntime"
        assert row["latency_p50_low_ms"] <= row["latency_p50_ms"] <= row["latency_p50_high_ms"]
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["cold_start_s"] > 0
        assert row["gflop"] == pytest.approx(2e-9 * (3 * 16 * 16 * 32 + 32 * 4))
        peak = 400 if key[0] == "onnx-int8" else 100  # the fixture's
        ms_per_image = row["latency_p50_ms"] / key[2]
        assert row["roofline_share"] == pytest.approx(row["gflop"] / (ms_per_image / 1000) / peak)
    assert rows["onnx-fp32", "onnxruntime", 1, 1]["speedup"] == 1.0


def test_what_is_written(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    config = BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("onnxruntime",), batch=(1,), **QUICK)
    result = benchmark(config)
    out = artifact.folder / "benchmark"
    assert json.loads((out / "benchmark.json").read_text()) == result
    assert result["machine"]["versions"]["onnxruntime"]
    assert "cpu_flags" in result["machine"]
    page = (out / "benchmark.html").read_text()
    assert result["command"] in page and "onnx-fp32" in page and page.count("data:image/png") >= 2
    picture = np.asarray(Image.open(out / "latency.png").convert("L"))
    assert (picture < 200).mean() > 0.005
    record = json.loads((out / "run.json").read_text())
    assert (record["verb"], record["status"], len(record["results"]["rows"])) == ("benchmark", "done", 1)
    benchmark(config)  # the default place is renewed without a question


def test_the_pytorch_row_is_the_baseline(tmp_path: Path, small_finetune_run: Path) -> None:
    run = str(small_finetune_run)
    artifact = tiny_artifact(tmp_path / "a", size=64, labels=PHOTOS, source={"run": run})
    result = benchmark(
        BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("pytorch", "onnxruntime"), batch=(1,), **QUICK)
    )
    rows = by_case(result["rows"])
    torch_row = rows["fp32", "pytorch", 1, 1]
    assert torch_row["status"] == "ok"
    assert torch_row["memory_peak_mib"] > rows["onnx-fp32", "onnxruntime", 1, 1]["memory_peak_mib"]
    weights = small_finetune_run / "model" / "model.safetensors"
    assert torch_row["model_size_mib"] == weights.stat().st_size / 2**20
    assert {row["baseline"] for row in rows.values()} == {"fp32 on pytorch"}


def test_absent_runtimes_are_rows_that_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "openvino", "torch")
    (tmp_path / "run").mkdir()
    artifact = tiny_artifact(tmp_path / "a", source={"run": str(tmp_path / "run")})
    rows = by_case(benchmark(BenchmarkConfig(artifacts=(artifact.folder,), batch=(1,), **QUICK))["rows"])
    assert rows["onnx-fp32", "onnxruntime", 1, 1]["status"] == "ok"
    absent = {key[1]: row["reason"] for key, row in rows.items() if row["status"] == "absent"}
    assert absent == {
        "openvino": "runtime openvino is not installed: pip install 'edgemim[openvino]'",
        "pytorch": "torch is not installed: pip install 'edgemim[train]'",
    }


@pytest.mark.parametrize(
    ("source", "reason"),
    [({}, "the manifest names no PyTorch run"), ({"run": "gone"}, "the run gone is not on this machine")],
)
def test_no_pytorch_row_without_its_run(tmp_path: Path, source: dict[str, str], reason: str) -> None:
    artifact = tiny_artifact(tmp_path / "a", source=source)
    config = BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("pytorch", "onnxruntime"), batch=(1,), **QUICK)
    row = by_case(benchmark(config)["rows"])["fp32", "pytorch", None, None]
    assert (row["status"], row["reason"]) == ("skipped", reason)


def test_a_model_that_a_runtime_refuses_is_a_failed_row(tmp_path: Path) -> None:
    good = tiny_artifact(tmp_path / "good")
    bad = tiny_artifact(tmp_path / "bad", operator="NoSuchOperator")
    config = BenchmarkConfig(artifacts=(good.folder, bad.folder), runtimes=("onnxruntime",), batch=(1,), **QUICK)
    rows = {Path(row["artifact"]).name: row for row in benchmark(config)["rows"]}
    assert rows["good"]["status"] == "ok"
    assert rows["bad"]["status"] == "failed"
    assert "NoSuchOperator" in rows["bad"]["reason"]


def test_nothing_measured_is_an_error(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", operator="NoSuchOperator")
    with pytest.raises(UserError, match="nothing could be measured"):
        benchmark(BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("onnxruntime",), batch=(1,), **QUICK))
    record = json.loads((artifact.folder / "benchmark" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 2)


def test_a_fixed_batch_is_measured_alone(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", batch=1)
    config = BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("onnxruntime",), batch=(1, 4), **QUICK)
    rows = by_case(benchmark(config)["rows"])
    assert rows["onnx-fp32", "onnxruntime", 1, 1]["status"] == "ok"
    assert rows["onnx-fp32", "onnxruntime", 4, 1]["reason"] == "made for batch 1 only"


@pytest.mark.skipif(usable_cpus() < 2, reason="one usable CPU")
def test_threads_take_effect_and_all_means_all(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", size=16, width=768, layers=4, batch=64)
    config = BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("onnxruntime",), batch=(64,), seconds=0.5)
    rows = by_case(benchmark(config)["rows"])
    assert {key[3] for key in rows} == {1, usable_cpus()}
    one, all_of_them = (rows["onnx-fp32", "onnxruntime", 64, threads] for threads in (1, usable_cpus()))
    assert one["cpus_used"] < 1.1
    # On a busy machine two threads do not get two CPUs; they get more than one thread does.
    assert all_of_them["cpus_used"] > 1.1 * one["cpus_used"] or all_of_them["foreign_load"] > 0.3


def test_a_disturbed_run_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from edgemim.edge import benchmark as measuring
    from edgemim.edge.machine import Load

    monkeypatch.setattr(measuring.LoadMeter, "stop", lambda self: Load(own=0.5, foreign=0.4, seconds=1.0))
    artifact = tiny_artifact(tmp_path / "a")
    result = benchmark(BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("onnxruntime",), batch=(1,), **QUICK))
    assert result["disturbed"]
    assert result["rows"][0]["speedup_disturbed"]
    output = capsys.readouterr()
    assert "disturbed run: in 1 of 1 cases other processes took over 10 % of the CPUs (up to 40%)" in output.err
    assert "40% !" in output.out


def test_a_quiet_run_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from edgemim.edge import benchmark as measuring
    from edgemim.edge.machine import Load

    monkeypatch.setattr(measuring.LoadMeter, "stop", lambda self: Load(own=0.5, foreign=0.02, seconds=1.0))
    artifact = tiny_artifact(tmp_path / "a")
    result = benchmark(BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("onnxruntime",), batch=(1,), **QUICK))
    assert not result["disturbed"]
    assert "disturbed run" not in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="thesis"):
            benchmark(BenchmarkConfig(artifacts=(artifact.folder,), out=tmp_path / "thesis", overwrite=overwrite))
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["ARTIFACT", "--threads", "-2"], "threads is -2"),
        (["ARTIFACT", "--batch", "0"], "batch is 0"),
        (["ARTIFACT", "--files", "onnx-int9"], "--files onnx-int9: no artifact has such a file"),
        (["ARTIFACT", "--blocks", "3"], "blocks"),
        (["ARTIFACT", "--runtimes", "onnxruntme"], "onnxruntme"),
    ],
)
def test_mistakes_exit_2_with_one_sentence(tmp_path: Path, words: list[str], message: str, capsys) -> None:
    folder = tiny_artifact(tmp_path / "a").folder
    words = [str(folder) if word == "ARTIFACT" else word for word in words]
    try:
        code = main(["benchmark", *words])
    except SystemExit as error:
        code = error.code
    assert code == 2
    output = capsys.readouterr()
    assert message in output.err + output.out
    assert "Traceback" not in output.err


def test_the_command_line_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    hide(monkeypatch, "torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    words = [str(artifact.folder), "--seconds", "0.02", "--batch", "1", "--threads", "1", "--runtimes", "onnxruntime"]
    assert main(["benchmark", *words]) == 0
    assert "next: edgemim predict" in capsys.readouterr().out


def test_every_graph_of_a_tracker_is_measured_at_batch_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = tiny_tracker(tmp_path / "a", "cached")
    result = benchmark(
        BenchmarkConfig(artifacts=(artifact.folder,), batch=(1, 4), runtimes=("pytorch", "onnxruntime"), **QUICK)
    )
    rows = by_case(result["rows"])
    assert {key for key, row in rows.items() if row["status"] == "ok"} == {
        ("onnx-fp32", "onnxruntime", 1, 1),
        ("onnx-fp32-template", "onnxruntime", 1, 1),
    }
    assert rows["onnx-fp32", "onnxruntime", 4, 1]["reason"] == "made for batch 1 only"
    assert "next: edgemim track VIDEO --artifact" in capsys.readouterr().out


def test_a_second_artifact_of_the_same_name_has_its_folder_in_its_name(tmp_path: Path) -> None:
    folders = tuple(tiny_artifact(tmp_path / name, int8=True).folder for name in "ab")
    config = BenchmarkConfig(artifacts=folders, runtimes=("onnxruntime",), batch=(1,), files=("*-int8",), **QUICK)
    rows = benchmark(config)["rows"]
    assert [(row["model"], row["file"]) for row in rows] == [("tiny in a", "onnx-int8"), ("tiny in b", "onnx-int8")]


@pytest.mark.skipif(not HAS_OPENVINO, reason="pip install 'edgemim[openvino]'")
def test_throughput_counts_all_images_in_flight_and_has_no_latency(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    config = BenchmarkConfig(
        artifacts=(artifact.folder,), runtimes=("openvino", "openvino-throughput"), batch=(2,), **QUICK
    )
    result = benchmark(config)
    single, many = result["rows"]
    assert many["runtime"] == "openvino-throughput"
    assert many["latency_p50_ms"] is None
    assert many["requests"] >= many["streams"] >= 1
    waves_ms = np.mean(many["block_medians_ms"])
    assert many["throughput_images_per_s"] == pytest.approx(1000 * 2 * 4 * many["requests"] / waves_ms, rel=0.9)
    assert many["speedup"] == pytest.approx(
        many["throughput_images_per_s"] / single["throughput_images_per_s"], rel=0.9
    )


def test_int8_is_set_beside_the_best_fp32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = tiny_artifact(tmp_path / "a", int8=True)
    config = BenchmarkConfig(artifacts=(artifact.folder,), runtimes=("onnxruntime",), batch=(1,), **QUICK)
    result = benchmark(config)
    (best,) = result["int8_over_best_fp32"]
    assert (best["fp32"], best["int8"]) == ("onnx-fp32 on onnxruntime", "onnx-int8 on onnxruntime")
    fp32, int8 = (by_case(result["rows"])[f"onnx-{name}", "onnxruntime", 1, 1] for name in ("fp32", "int8"))
    ratios = np.divide(fp32["block_medians_ms"], int8["block_medians_ms"])
    assert best["speedup"] == pytest.approx(np.median(ratios))
    assert f"{best['speedup']:.2f}× as fast" in capsys.readouterr().out


def test_peers_of_timm_in_the_same_run(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    config = BenchmarkConfig(
        artifacts=(artifact.folder,), peers=("test_vit",), runtimes=("pytorch", "onnxruntime"), batch=(1,), **QUICK
    )
    rows = by_case([row for row in benchmark(config)["rows"] if row["model"] == "test_vit"])
    assert {key: row["status"] for key, row in rows.items()} == {
        ("fp32", "pytorch", 1, 1): "ok",
        ("onnx-fp32", "onnxruntime", 1, 1): "ok",
    }
    assert {row["baseline"] for row in rows.values()} == {"fp32 on pytorch"}
    assert (artifact.folder / "benchmark" / "peers" / "test_vit" / "model.onnx").is_file()


def test_a_peer_that_is_none_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    with pytest.raises(UserError, match=r"no network 'fastvit_t9' \(did you mean 'fastvit_t8'\?\)"):
        benchmark(BenchmarkConfig(artifacts=(artifact.folder,), peers=("fastvit_t9",)))


def test_peers_without_torch_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    hide(monkeypatch, "torch")
    config = BenchmarkConfig(
        artifacts=(artifact.folder,), peers=("test_vit",), runtimes=("onnxruntime",), batch=(1,), **QUICK
    )
    absent = [row for row in benchmark(config)["rows"] if row["status"] == "absent"]
    assert [(row["model"], row["reason"]) for row in absent] == [
        ("test_vit", "peers need torch: pip install 'edgemim[train]'")
    ]


def test_gpu_runtimes_are_rows_that_say_why(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a")
    config = BenchmarkConfig(
        artifacts=(artifact.folder,), runtimes=("onnxruntime", "onnxruntime-cuda", "tensorrt"), batch=(1,), **QUICK
    )
    rows = {row["runtime"]: row for row in benchmark(config)["rows"]}
    assert rows["onnxruntime"]["status"] == "ok"
    for name in ("onnxruntime-cuda", "tensorrt"):
        assert rows[name]["status"] == "ok" or (rows[name]["status"] == "absent" and rows[name]["reason"])


def test_the_command_can_be_given_again() -> None:
    config = BenchmarkConfig(
        artifacts=(Path("a b"),), threads=(2,), runtimes=("pytorch",), overwrite=True, peers=("x", "y"), out=Path("o")
    )
    assert command_line(config) == (
        "edgemim benchmark 'a b' --peers x y --threads 2 --runtimes pytorch --out o --overwrite"
    )
    assert command_line(BenchmarkConfig()) == "edgemim benchmark"


def test_every_runtime_can_be_asked_for() -> None:
    choices = get_args(get_args(BenchmarkConfig.model_fields["runtimes"].annotation)[0])
    assert choices == ("all", *RUNTIMES)
