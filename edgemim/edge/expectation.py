"""How fast a model should be here: its arithmetic over the measured roofline, by the shares that runtimes reach of it."""

from __future__ import annotations

from dataclasses import dataclass

from edgemim.edge.roofline import Roofline

# Of the measured roofline, what ViT-Tiny 224 (3 and 12 heads) reached at batch 1 on ONNX Runtime (the lower ends, two
# threads) and OpenVINO (the upper ends, one thread), each in its own INT8 form, on quiet Xeon and EPYC CPUs with VNNI.
REACHED = {"fp32": (0.38, 0.80), "int8": (0.13, 0.42)}
_BYTES = {"fp32": 4, "int8": 1}


@dataclass(frozen=True)
class Load:
    """What one run of a network asks for: `gflop` 10⁹ operations (two a multiplication and addition), `parameters`."""

    name: str
    gflop: float
    parameters: int


VIT_TINY = Load("ViT-Tiny/16 at 224 pixels", 2.507, 5_717_416)


@dataclass(frozen=True)
class Expected:
    """Latency of batch 1 as a range, milliseconds, and how it came about."""

    least_ms: float
    most_ms: float
    derived: str

    def __str__(self) -> str:
        return f"{self.least_ms:.3g} to {self.most_ms:.3g} ms"


def expect(load: Load, precision: str, roofline: Roofline) -> Expected:
    """What a file of that precision ("fp32", "int8") should take with the roofline's threads.

    The weights are read from memory once a run; nothing is faster than that.
    """
    low, high = REACHED[precision]
    ideal_ms = 1000 * load.gflop / roofline.peak(precision)
    memory_ms = 1000 * load.parameters * _BYTES[precision] / (roofline.memory_gb_per_s * 1e9)
    unit = "GOP/s" if precision == "int8" else "GFLOP/s"
    derived = (
        f"{load.gflop:.3g} GFLOP at {low:.0%} to {high:.0%} of {roofline.peak(precision):.0f} {unit}, "
        f"which this model reached on other CPUs; reading the weights alone takes {memory_ms:.3g} ms"
    )
    return Expected(max(ideal_ms / high, memory_ms), max(ideal_ms / low, memory_ms), derived)
