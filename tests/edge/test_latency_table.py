import io
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from edgemim.edge.latency_table import print_table, row_name, save_picture, unmeasured

MACHINE = {"cpu": "Some [CPU]", "usable_cpus": 2, "memory_gib": 4.0, "int8_instructions": []}
ROOF = {"threads": 2, "fp32_gflops": 254.2, "int8_gops": 1021.0, "foreign_load": 0.3}
BEST = {"model": "m", "batch": 1, "threads": 2, "fp32": "a on b", "int8": "c on d", "speedup": 1.62}
BEST |= {"speedup_low": 1.5, "speedup_high": 1.7, "speedup_disturbed": False}
ABSENT = {
    "model": "m",
    "file": "onnx-fp32",
    "runtime": "openvino",
    "version": None,
    "status": "absent",
    "reason": "openvino is not installed: pip install 'edgemim[openvino]'",
}


def measured(**changes: object) -> dict[str, object]:
    row = {
        "model": "m",
        "file": "onnx-int8",
        "runtime": "onnxruntime",
        "version": "1.2",
        "status": "ok",
        "batch": 4,
        "threads": 2,
        "precision": "int8",
        "latency_p50_ms": 10.0,
        "latency_p50_low_ms": 9.5,
        "latency_p50_high_ms": 10.5,
        "latency_p90_ms": 12.0,
        "latency_p99_ms": 20.0,
        "throughput_images_per_s": 380.0,
        "speedup": 1.5,
        "speedup_low": 1.4,
        "speedup_high": 1.6,
        "roofline_share": 0.37,
        "cold_start_s": 31.4,
        "speedup_disturbed": False,
        "baseline": "fp32 on pytorch",
        "model_size_mib": 6.25,
        "memory_peak_mib": 99.6,
        "foreign_load": 0.03,
        "disturbed": False,
    }
    return {**row, **changes}


def printed(rows: list[dict[str, object]]) -> str:
    text = io.StringIO()
    result = {"machine": MACHINE, "rows": rows, "rooflines": [ROOF], "int8_over_best_fp32": [BEST]}
    print_table(result, Console(file=text, width=220))
    return text.getvalue()


def test_every_figure_of_a_row_is_shown() -> None:
    text = printed([measured()])
    line = next(line for line in text.splitlines() if "onnx-int8 on onnxruntime" in line)
    for figure in (
        "4",
        "2",
        "10.00",
        "9.5-10.5",
        "12.00",
        "20.00",
        "380.0",
        "1.50×",
        "1.4-1.6",
        "37",
        "31.4",
        "6.2",
        "100",
        "3%",
    ):
        assert figure in line
    assert "?" not in line
    assert "!" not in line
    assert "Some [CPU]: 2 CPUs" in text
    assert "fp32 on pytorch" in text
    assert "versions: onnxruntime 1.2" in text
    assert "2 threads reach 254 GFLOP/s in FP32, 1021 GOP/s in INT8 (others took 30% of the CPUs meanwhile)" in text
    assert "m, batch 1, 2 threads: c on d is 1.62× as fast [1.50-1.70] as the best FP32, a on b" in text


def test_throughput_has_no_latency() -> None:
    names = ("p50", "p50_low", "p50_high", "p90", "p99")
    text = printed([measured(runtime="openvino-throughput", **{f"latency_{name}_ms": None for name in names})])
    line = next(line for line in text.splitlines() if "openvino-throughput" in line)
    assert "380.0" in line and line.count("–") == 4


def test_one_reason_is_told_once() -> None:
    rows = [{**ABSENT, "file": f"file{i}"} for i in range(5)] + [{**ABSENT, "status": "skipped", "batch": 8}]
    assert unmeasured(rows) == [
        f"m file0 on openvino, m file1 on openvino and 3 more: absent: {ABSENT['reason']}",
        f"m onnx-fp32 on openvino at batch 8: skipped: {ABSENT['reason']}",
    ]


def test_disturbed_rows_are_marked() -> None:
    line = next(
        line
        for line in printed([measured(disturbed=True, speedup_disturbed=True, foreign_load=0.5)]).splitlines()
        if "on onnxruntime" in line
    )
    assert "1.50×?" in line
    assert "50% !" in line


def test_a_row_that_is_absent_says_how_to_get_it() -> None:
    text = " ".join(word for word in printed([ABSENT]).replace("│", " ").split())
    assert "m onnx-fp32 on openvino: absent: openvino is not installed: pip install 'edgemim[openvino]'" in text


def test_picture_has_a_bar_for_each_measured_row(tmp_path: Path) -> None:
    save_picture([measured(), measured(file="onnx-fp32", batch=1), ABSENT], tmp_path / "two.png")
    save_picture([measured()], tmp_path / "one.png")
    heights = [np.asarray(Image.open(tmp_path / f"{name}.png")).shape[0] for name in ("one", "two")]
    assert heights[1] > heights[0]


def test_nothing_measured_nothing_drawn(tmp_path: Path) -> None:
    save_picture([ABSENT], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_names_say_model_file_and_runtime() -> None:
    assert row_name(ABSENT) == "m onnx-fp32 on openvino"
