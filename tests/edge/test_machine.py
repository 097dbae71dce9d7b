import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from edgemim.edge import machine
from edgemim.edge.machine import LoadMeter, cpu_flags, cpu_model, describe, peak_memory_mib, usable_cpus

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz
flags\t\t: fpu avx avx2 fma f16c sse4_2 avx512f avx512_vnni hypervisor
"""
SAPPHIRE = (
    "model name\t: X\nflags\t\t: avx512f avx512_vnni avx_vnni amx_bf16 avx512_fp16 amx_tile amx_int8 avx512_bf16\n"
)
PI5 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes asimdhp cpuid asimddp\nModel\t\t: Raspberry Pi 5 Model B\n"
BURN = "import time\nend = time.perf_counter() + 1.2\nprint(flush=True)\nwhile time.perf_counter() < end: pass"


def in_child(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_flags_of_known_processors() -> None:
    assert cpu_flags(XEON) == ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni")
    assert {"amx_tile", "amx_int8", "amx_bf16", "avx_vnni"} <= set(cpu_flags(SAPPHIRE))
    assert cpu_flags(PI5) == ("asimd", "asimdhp", "asimddp")
    assert cpu_flags("") == ()


def test_names_of_known_processors() -> None:
    assert cpu_model(XEON) == "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz"
    assert cpu_model(PI5) == "Raspberry Pi 5 Model B"
    assert cpu_model("")


def test_describe_is_json_and_knows_this_machine() -> None:
    found = json.loads(json.dumps(describe()))
    assert found["versions"]["numpy"] == np.__version__
    assert found["memory_gib"] > 0.1
    assert set(found["int8_instructions"]) <= set(found["cpu_flags"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_usable_cpus_follow_the_affinity() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    assert in_child(code + "from edgemim.edge.machine import usable_cpus; print(usable_cpus())").strip() == "1"
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)])
def test_usable_cpus_follow_a_container_quota(monkeypatch: pytest.MonkeyPatch, quota: str, expected: int) -> None:
    monkeypatch.setattr(machine, "_affinity", lambda: range(8))
    monkeypatch.setattr(machine.Path, "read_text", lambda self: quota)
    assert usable_cpus() == expected


def test_peak_memory_is_the_process_own_and_stays() -> None:
    ballast = np.ones(30_000_000)  # 229 MiB in this process; a child must not inherit the peak
    assert peak_memory_mib() > ballast.nbytes / 2**20
    measured = in_child(
        "import numpy as np; from edgemim.edge.machine import peak_memory_mib as peak\n"
        "before = peak(); big = np.ones(12_500_000); during = peak(); del big; print(before, during, peak())"
    )
    before, during, after = map(float, measured.split())
    assert before < 200
    assert 90 < during - before < 110
    assert after > during - 2  # the kernel counts in batches of pages


def test_load_of_another_process_is_foreign_until_it_is_named_own() -> None:
    child = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child, child.stdout:
        child.stdout.readline()
        without, with_child = LoadMeter(), LoadMeter([child.pid])
        before = machine.psutil.Process(child.pid).cpu_times().user
        time.sleep(1.0)
        mine, both = without.stop(), with_child.stop()
        burnt = machine.psutil.Process(child.pid).cpu_times().user - before
    share = burnt / mine.seconds / len(machine._affinity())
    assert share > 0.05
    assert both.own - mine.own == pytest.approx(share, abs=0.05)
    assert mine.foreign - both.foreign == pytest.approx(share, abs=0.1)
    assert mine.foreign > 0.8 * share - 0.05


def test_own_work_is_own() -> None:
    meter = LoadMeter()
    used, end = time.process_time(), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        pass
    load = meter.stop()
    used = time.process_time() - used
    assert load.own == pytest.approx(used / load.seconds / len(machine._affinity()), abs=0.06)
    meter.restart()
    assert meter.stop().seconds < 0.4


def test_shares_stay_between_nothing_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(0.0, 0.0, 0.0), (1.0, 5.0, 0.0), (1.0, 5.0, 0.0), (2.0, 5.2, 9.0)])
    monkeypatch.setattr(LoadMeter, "_read", lambda self: next(readings))
    monkeypatch.setattr(machine, "_affinity", lambda: range(2))
    meter = LoadMeter()
    assert meter.stop().foreign == 1.0
    meter.restart()
    assert meter.stop().foreign == 0.0
