"""Golden cases of the lightweight study's instruments: minibatch linear CKA, attention distance and entropy."""

from __future__ import annotations

import math
import re

import torch

from edgemim.analysis.attention import PUBLISHED_PATCH_PX, AttentionStatistics, patch_distances
from edgemim.analysis.cka import MinibatchCka
from tests.golden.case import Case, Comparison

_PREFIX = 1


def compare_cka(case: Case) -> Comparison:
    """CKA of the case's features, and what is added up after every batch."""
    result = Comparison(case)
    cka = MinibatchCka()
    for batch in range(len(case.config["batches"])):
        first, second = (
            [case.inputs[f"batch{batch}.{which}{layer}"] for layer in range(len(case.config[dims]))]
            for which, dims in (("x", "dims1"), ("y", "dims2"))
        )
        cka.update(first, second)
        assert cka.sums is not None
        result.output(f"hsic_running_sum_after_batch{batch}", cka.sums)
    result.output("cka", cka.compute())
    return result.finish()


def compare_attention(case: Case) -> Comparison:
    """Distance and entropy of the case's logits: as published, so 14 pixels a patch and batches that count alike."""
    result = Comparison(case)
    small = patch_distances(_grid(case.config["atokens"]), PUBLISHED_PATCH_PX)
    result.output("dist_matrix", small)
    batches = [f"batch{number}.logits" for number in range(len(case.config["abatches"]))]
    layers = sorted({found[1] for name in case.inputs if (found := re.match(r"(grid14\.layer\d+)\.", name))})
    for label, names in [("", batches), *((f"{layer}.", [f"{layer}.logits"]) for layer in layers)]:
        tokens = case.inputs[names[0]].shape[-1] - _PREFIX
        statistics = AttentionStatistics(patch_distances(_grid(tokens), PUBLISHED_PATCH_PX), _PREFIX)
        for name in names:
            statistics.update(case.inputs[name])
        with torch.no_grad():
            result.output(f"{label}distance", statistics.mean("distance_px", equal_batches=True))
            result.output(f"{label}entropy", statistics.mean("entropy_nats", equal_batches=True))
    return result.finish()


def _grid(tokens: int) -> tuple[int, int]:
    return math.isqrt(tokens), math.isqrt(tokens)
