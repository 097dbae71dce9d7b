"""What may have slowed the machine while it was measured: clock, heat, quotas, memory, and a drift that all cases share."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

CPUS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")
_MIB = 2**20
_SLOWER_CLOCK = 0.95
_DRIFT = 0.05
_HOT_C = 90.0


@dataclass(frozen=True)
class Conditions:
    """A look at the machine; None where the system does not tell, as most virtual machines.

    Attributes:
        clock_mhz: mean clock of the CPUs.
        governors: rules by which the clock is chosen.
        throttle_events: times that the CPUs slowed down because of heat, since the start of the machine.
        quota_throttled_s: time for which the container's CPU quota was used up.
        temperature_c: the hottest sensor.
    """

    clock_mhz: float | None
    governors: tuple[str, ...]
    throttle_events: int | None
    quota_throttled_s: float | None
    temperature_c: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "governors": list(self.governors)}


def read_conditions(cpus: Path = CPUS, cgroup: Path = CGROUP) -> Conditions:
    """Look at the machine now."""
    governors = {path.read_text().strip() for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    events = [_number(path) for path in cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    throttled = [line.split()[1] for line in _lines(cgroup / "cpu.stat") if line.startswith("throttled_usec")]
    return Conditions(
        _clock_mhz(),
        tuple(sorted(governors)),
        int(sum(events)) if events else None,
        int(throttled[0]) / 1e6 if throttled else None,
        _temperature_c(),
    )


def slowdowns(before: Conditions, after: Conditions) -> list[str]:
    """Sentences on what slowed the machine between two looks, or may have; empty where nothing is known."""
    found = []
    if _more(before.throttle_events, after.throttle_events):
        found.append("the CPU slowed itself down because of heat; cool it and repeat")
    if before.clock_mhz and after.clock_mhz and after.clock_mhz < _SLOWER_CLOCK * before.clock_mhz:
        found.append(f"the CPU's clock fell from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz")
    if _more(before.quota_throttled_s, after.quota_throttled_s):
        seconds = (after.quota_throttled_s or 0.0) - (before.quota_throttled_s or 0.0)
        found.append(f"the container's CPU quota held it back for {seconds:.1f} s; give it more or use fewer threads")
    if slow := [name for name in after.governors if name in ("powersave", "conservative")]:
        found.append(f"the clock is chosen by '{slow[0]}', which may keep it low; 'performance' gives steady figures")
    if after.temperature_c is not None and after.temperature_c >= _HOT_C:
        found.append(f"the machine is at {after.temperature_c:.0f} °C")
    return found


def shared_drift(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence if most measured cases became slower or faster from their first blocks to their last; else None."""
    drifts = [row["drift"] for row in rows if row["status"] == "ok"]
    if len(drifts) < 3:
        return None
    middle = statistics.median(drifts)
    if abs(middle - 1) <= _DRIFT:
        return None
    way = "slower: heat or other load" if middle > 1 else "faster: load at the start"
    return f"from first to last block the cases became {abs(middle - 1):.0%} {way}; ratios hold better than times"


def available_memory_mib(cgroup: Path = CGROUP) -> float:
    """Memory that is left to new processes, MiB: the machine's, and in a container its limit's."""
    left = psutil.virtual_memory().available / _MIB
    limit, used = (" ".join(_lines(cgroup / f"memory.{name}")) for name in ("max", "current"))
    return min(left, (int(limit) - int(used)) / _MIB) if limit.isdigit() and used.isdigit() else left


def _clock_mhz() -> float | None:
    try:
        clock = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return float(clock.current) if clock and clock.current else None


def _temperature_c() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    try:
        sensors = psutil.sensors_temperatures()
    except (OSError, RuntimeError):
        return None
    return max((entry.current for entries in sensors.values() for entry in entries), default=None)


def _more(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after > before


def _number(path: Path) -> int:
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
