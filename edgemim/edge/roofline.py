"""The machine's roofline: the fastest matrix products in float32 and in 8 bits, and the memory's speed, measured in seconds.

Matrices are of a ViT's sizes, which stay in the caches, and the fastest of many short runs counts: other processes
disturb it little. Measured with whatever of ONNX Runtime and OpenVINO is installed, in a process of its own.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.edge.machine import INSTALL, LoadMeter, runtime_version, usable_cpus
from edgemim.errors import MissingLibrary, ModelRefused

_SHAPES = ((256, 768, 768), (197, 192, 768))
_COPIED_BYTES = 64 * 2**20  # beyond the last cache of most CPUs
_SECONDS = 0.25  # for each product and library
_TIMEOUT_S = 120.0
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # TensorProto.DataType


@dataclass(frozen=True)
class Roofline:
    """What so many threads of this machine reach at most.

    Attributes:
        threads: CPU threads.
        fp32_gflops: float32 matrix products, 10⁹ multiplications and additions a second.
        int8_gops: products of 8-bit by 8-bit numbers, summed in 32 bits, the same way.
        memory_gb_per_s: bytes read and written by copying, 10⁹ a second.
        libraries: which library reached "fp32" and "int8", with its version.
        foreign_load: share of the CPUs that others took meanwhile.
    """

    threads: int
    fp32_gflops: float
    int8_gops: float
    memory_gb_per_s: float
    libraries: dict[str, str]
    foreign_load: float

    def peak(self, precision: str) -> float:
        """10⁹ operations a second for a file of that precision: int8's, or float32's for all others."""
        return self.int8_gops if precision == "int8" else self.fp32_gflops

    def share(self, gflop: float, latency_ms: float, precision: str) -> float:
        """Which part of the peak a run of `gflop` 10⁹ operations in `latency_ms` used, from 0 to 1 (in principle)."""
        return gflop / (latency_ms / 1000) / self.peak(precision)


def measure_roofline(threads: int = 0) -> Roofline:
    """Measure in a child process, so that thread pools stay its own; `threads=0` means all usable CPUs. Takes 2-4 s.

    Raises:
        MissingLibrary: if neither ONNX Runtime nor OpenVINO works here.
        ModelRefused: if the child does not answer.
    """
    threads = threads or usable_cpus()
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "edgemim.edge.roofline", str(threads)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        )
    except subprocess.TimeoutExpired as error:
        raise ModelRefused(f"the roofline took more than {_TIMEOUT_S:.0f} s; repeat on a quieter machine") from error
    lines = answer.stdout.strip().splitlines()
    if answer.returncode == MissingLibrary.exit_code:
        raise MissingLibrary(answer.stderr.strip().splitlines()[-1])
    if answer.returncode or not lines:
        last = answer.stderr.strip().splitlines()[-1:] or [f"status {answer.returncode}"]
        raise ModelRefused(f"the roofline cannot be measured: {last[0][:300]}")
    return Roofline(**json.loads(lines[-1]))


def measure_here(threads: int, seconds: float = _SECONDS) -> Roofline:
    """Measure in this process. Raises MissingLibrary if neither library works."""
    meter = LoadMeter()
    best: dict[str, tuple[float, str]] = {}
    for library, products in (("onnxruntime", _onnxruntime_products), ("openvino", _openvino_products)):
        try:
            for precision, operations, call in products(threads):
                reached = operations / _fastest(call, seconds) / 1e9
                if reached > best.get(precision, (0.0, ""))[0]:
                    best[precision] = reached, f"{library} {runtime_version(library) or ''}".strip()
        except Exception:  # absent, or broken, for which they share no base class: the other one's figures stand
            continue
    if len(best) < 2:
        raise MissingLibrary(f"the roofline needs a runtime that works: {INSTALL['onnxruntime']}")
    memory = _memory_gb_per_s(threads, seconds)
    return Roofline(
        threads=threads,
        fp32_gflops=round(best["fp32"][0], 1),
        int8_gops=round(best["int8"][0], 1),
        memory_gb_per_s=round(memory, 1),
        libraries={precision: name for precision, (_, name) in best.items()},
        foreign_load=round(meter.stop().foreign, 3),
    )


Product = tuple[str, float, Callable[[], object]]
"""Precision (fp32 or int8), operations of one run, and the run."""


def _matrices(shape: tuple[int, int, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows, inner, columns = shape
    random = np.random.default_rng(0)
    return {
        "fp32": (
            random.standard_normal((rows, inner), np.float32),
            random.standard_normal((inner, columns), np.float32),
        ),
        "int8": (
            random.integers(0, 256, (rows, inner), np.uint8),
            random.integers(-63, 64, (inner, columns), np.int8),  # 7 bits: no 16-bit sum overflows anywhere
        ),
    }


def _shapes(threads: int) -> Iterator[tuple[int, int, int]]:
    """More rows for many threads, so that each has enough to do."""
    for rows, inner, columns in _SHAPES:
        yield rows * math.ceil(threads / 4), inner, columns


def _onnxruntime_products(threads: int) -> Iterator[Product]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for shape in _shapes(threads):
        for precision, (left, right) in _matrices(shape).items():
            model = product_model(left, right)
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            yield precision, 2.0 * math.prod(shape), lambda session=session, left=left: session.run(None, {"a": left})


def _openvino_products(threads: int) -> Iterator[Product]:
    import openvino
    from openvino import opset13

    from edgemim.edge.runtime.openvino import core

    build: Any = openvino.Model
    settings = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": "f32"}
    for shape in _shapes(threads):
        for precision, (left, right) in _matrices(shape).items():
            given = opset13.parameter(left.shape, left.dtype)
            first, second = given, opset13.constant(np.ascontiguousarray(right.T))
            if precision == "int8":  # numbers with their scales, as a quantised file writes them
                scales = opset13.constant(np.full((shape[2], 1), 0.01, np.float32))
                first = opset13.multiply(opset13.convert(given, "f32"), opset13.constant(np.float32(0.01)))
                second = opset13.multiply(opset13.convert(second, "f32"), scales)
            model = build([opset13.matmul(first, second, False, True)], [given])
            request = core().compile_model(model, "CPU", settings).create_infer_request()
            request.set_input_tensor(openvino.Tensor(left, shared_memory=True))
            yield precision, 2.0 * math.prod(shape), request.infer


def _fastest(call: Callable[[], object], seconds: float) -> float:
    """The shortest run, in seconds, of at least three."""
    shortest, end, runs = math.inf, time.perf_counter() + seconds, 0
    while runs < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        shortest, runs = min(shortest, time.perf_counter() - began), runs + 1
    return shortest


def _memory_gb_per_s(threads: int, seconds: float) -> float:
    source = np.ones(_COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # copying leaves the interpreter's lock

        def copy() -> None:
            for done in [pool.submit(np.copyto, to, part) for part, to in parts]:
                done.result()

        copy()  # the first one maps the pages
        return 2 * _COPIED_BYTES / _fastest(copy, seconds) / 1e9


def product_model(left: np.ndarray, right: np.ndarray) -> bytes:
    """An ONNX file of one product a·b with b constant: MatMul of floats, MatMulInteger of bytes. Field numbers are
    onnx.proto's; the builder package is not part of the edge wing."""
    integer = right.dtype == np.int8
    kinds = (_UINT8, _INT8, _INT32) if integer else (_FLOAT,) * 3
    node = _field(1, b"a") + _field(1, b"b") + _field(2, b"c") + _field(4, b"MatMulInteger" if integer else b"MatMul")
    sides = b"".join(_number(1, side) for side in right.shape)
    constant = sides + _number(2, kinds[1]) + _field(8, b"b") + _field(9, right.tobytes())
    graph = _field(1, node) + _field(2, b"g") + _field(5, constant)
    graph += _field(11, _value(b"a", kinds[0], left.shape))
    graph += _field(12, _value(b"c", kinds[2], (left.shape[0], right.shape[1])))
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 13))


def _value(name: bytes, kind: int, shape: tuple[int, ...]) -> bytes:
    sides = b"".join(_field(1, _number(1, side)) for side in shape)
    return _field(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, sides)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    pieces = []
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*pieces, value])


def _main(arguments: list[str]) -> None:
    try:
        print(json.dumps(asdict(measure_here(int(arguments[0])))))
    except MissingLibrary as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _main(sys.argv[1:])
