"""Which layers INT8 ruins: how far each block is from FP32, and the fewest layers in float that mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from edgemim.export.graph_blocks import Block, blocks_of
from edgemim.export.int8_files import Layer, SourceGraph
from edgemim.export.probe import open_probe
from edgemim.export.smoothing import Inputs
from edgemim.tasks.comparison import cosines

PROBED = 16
"""Inputs that cosines inside a model are taken from; a block that collapses does so on each."""


class Judged(Protocol):
    """An INT8 form that was built and compared."""

    @property
    def faults(self) -> tuple[str, ...]:
        """What the gate holds against its answers."""
        ...


AnAttempt = TypeVar("AnAttempt", bound=Judged)


def block_cosines(fp32: Path, int8: Path, inputs: Iterable[Inputs]) -> dict[str, float]:
    """The mean cosine of what each block hands on in both files, by the block's name, in order of computation.

    Args:
        fp32: an ONNX file.
        int8: a file quantised from it (or from one with the same answers), ONNX or OpenVINO.
        inputs: inputs by name, one or more; 0 for a block whose output is not finite or not there any more.
    """
    blocks = blocks_of(fp32)
    ends = [block.end for block in blocks]
    original, quantised = open_probe(fp32, ends), open_probe(int8, ends)
    rows = []
    for given in inputs:
        a, b = original(given), quantised(given)
        rows.append([_cosine(a[end], b.get(end)) for end in ends])
    return dict(zip((block.name for block in blocks), np.mean(rows, axis=0).tolist(), strict=True))


def spread(inputs: Sequence[Inputs], count: int) -> Sequence[Inputs]:
    """About `count` of the inputs, evenly over all: they may stand class by class."""
    return inputs[:: max(1, len(inputs) // count)][:count]


def _cosine(a: np.ndarray, b: np.ndarray | None) -> float:
    if b is None or not np.isfinite(b).all():
        return 0.0
    return float(cosines(a[None], b[None])[0])


def own_errors(cosine: Mapping[str, float]) -> dict[str, float]:
    """What each block adds to the error, 1 - cosine, of the blocks before it; not below 0."""
    before, found = 0.0, {}
    for name, value in cosine.items():
        error = 1 - value
        found[name], before = max(0.0, error - before), error
    return found


def rank_blocks(graphs: Sequence[SourceGraph], paths: Sequence[Path]) -> list[tuple[Layer, ...]]:
    """The layers of each block of all graphs (`paths`: the INT8 file of each), the block that errs most first."""
    errors: list[tuple[float, tuple[Layer, ...]]] = []
    for graph, path in zip(graphs, paths, strict=True):
        added = own_errors(block_cosines(graph.path, path, spread(graph.inputs, PROBED)))
        for block in blocks_of(graph.path):
            errors.append((added[block.name], _layers(graph, block)))
    return [layers for _, layers in sorted(errors, key=lambda entry: -entry[0])]


def _layers(graph: SourceGraph, block: Block) -> tuple[Layer, ...]:
    return tuple((graph.suffix, node) for node in block.nodes)


def search_floats(
    plain: AnAttempt,
    attempt: Callable[[tuple[Layer, ...]], AnAttempt],
    rank: Callable[[AnAttempt], Sequence[tuple[Layer, ...]]],
) -> AnAttempt | None:
    """The form that passes with few layers in float, or None if half of the blocks in float are not enough.

    Blocks are added by their error in the last form (1, 1, 2, 4, ... of them); then each is turned back, and of those
    that must stay the half of their layers that need not, for as long as the form passes.

    Args:
        plain: the form with all layers in INT8, which does not pass.
        attempt: builds and compares a form with these layers in float.
        rank: all blocks, as layers, the one that errs most first.
    """
    chosen: list[tuple[Layer, ...]] = []
    current, step = plain, 1
    while current.faults:
        order = rank(current)
        rest = [block for block in order if block not in chosen]
        more = rest[: min(step, max(1, len(order) // 2) - len(chosen))]
        if not more:
            return None
        step = max(1, len(chosen) * 2)
        chosen += more
        current = attempt(_joined(chosen))
    for block in chosen[::-1]:
        fewer = [other for other in chosen if other != block]
        if fewer and not (tried := attempt(_joined(fewer))).faults:
            chosen, current = fewer, tried
    for block in list(chosen):
        chosen, current = _narrow(chosen, block, current, attempt)
    return current


def _narrow(
    chosen: list[tuple[Layer, ...]],
    block: tuple[Layer, ...],
    current: AnAttempt,
    attempt: Callable[[tuple[Layer, ...]], AnAttempt],
) -> tuple[list[tuple[Layer, ...]], AnAttempt]:
    """Keep only half of a block's layers in float, and of these half, while one of both halves is enough."""
    kept = block
    while len(kept) > 1:
        middle = len(kept) // 2
        for half in (kept[middle:], kept[:middle]):
            narrower = [half if other == kept else other for other in chosen]
            if not (tried := attempt(_joined(narrower))).faults:
                chosen, kept, current = narrower, half, tried
                break
        else:
            break
    return chosen, current


def _joined(blocks: Iterable[tuple[Layer, ...]]) -> tuple[Layer, ...]:
    return tuple(layer for block in blocks for layer in block)
