"""What slowed the machine is read where the system tells, and said in a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgemim.edge.conditions import Conditions, available_memory_mib, read_conditions, shared_drift, slowdowns

QUIET = Conditions(3000.0, ("performance",), 4, 1.5, 50.0)


def test_files_of_the_system_are_read(tmp_path: Path) -> None:
    for cpu, governor in (("cpu0", "powersave"), ("cpu1", "performance")):
        (tmp_path / cpu / "cpufreq").mkdir(parents=True)
        (tmp_path / cpu / "cpufreq" / "scaling_governor").write_text(governor + "\n")
        (tmp_path / cpu / "thermal_throttle").mkdir()
        (tmp_path / cpu / "thermal_throttle" / "core_throttle_count").write_text("3\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 9\nnr_throttled 2\nthrottled_usec 2500000\n")
    found = read_conditions(tmp_path, tmp_path)
    assert found.governors == ("performance", "powersave")
    assert found.throttle_events == 6
    assert found.quota_throttled_s == 2.5


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = read_conditions(tmp_path, tmp_path)
    assert (found.governors, found.throttle_events, found.quota_throttled_s) == ((), None, None)
    assert slowdowns(found, found) == [] or found.temperature_c is not None
    assert found.as_dict()["governors"] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"throttle_events": 5}, "slowed itself down because of heat"),
        ({"clock_mhz": 2000.0}, "clock fell from 3000 to 2000 MHz"),
        ({"quota_throttled_s": 3.5}, "quota held it back for 2.0 s"),
        ({"governors": ("powersave",)}, "chosen by 'powersave'"),
        ({"temperature_c": 97.0}, "at 97 °C"),
    ],
)
def test_each_slowdown_is_a_sentence(changes: dict, sentence: str) -> None:
    assert slowdowns(QUIET, QUIET) == []
    (found,) = slowdowns(QUIET, replace(QUIET, **changes))
    assert sentence in found


def test_a_drift_that_most_cases_share() -> None:
    def rows(*drifts: float) -> list[dict]:
        return [{"status": "ok", "drift": drift} for drift in drifts] + [{"status": "absent"}]

    assert shared_drift(rows(1.2, 1.1, 1.0)) == (
        "from first to last block the cases became 10% slower: heat or other load; ratios hold better than times"
    )
    assert "faster" in (shared_drift(rows(0.8, 0.9, 1.0)) or "")
    assert shared_drift(rows(1.0, 1.02, 1.9)) is None  # one case alone is not the machine
    assert shared_drift(rows(1.5, 1.5)) is None


def test_memory_is_bounded_by_the_container_s_limit(tmp_path: Path) -> None:
    everything = available_memory_mib(tmp_path)
    assert everything > 0
    (tmp_path / "memory.max").write_text(str(100 * 2**20))
    (tmp_path / "memory.current").write_text(str(70 * 2**20))
    assert available_memory_mib(tmp_path) == 30
    (tmp_path / "memory.max").write_text("max")
    assert available_memory_mib(tmp_path) > 30
