"""The search for layers that must stay in float: it finds the culprit, and no more than that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hard_to_quantise import ruin_projection

from edgemim.export.graph_blocks import blocks_of
from edgemim.export.int8_files import Layer, SourceGraph
from edgemim.export.onnxruntime import quantize_dynamic_onnx
from edgemim.export.sensitivity import block_cosines, own_errors, rank_blocks, search_floats

BLOCKS = [tuple(("", f"{block}{layer}") for layer in "wxyz") for block in "abcdefgh"]


@dataclass(frozen=True)
class Form:
    faults: tuple[str, ...]


class Gate:
    """Passes once all culprits are in float."""

    def __init__(self, *culprits: str) -> None:
        self.culprits = set(culprits)
        self.tried: list[tuple[Layer, ...]] = []

    def attempt(self, floats: tuple[Layer, ...]) -> Form:
        self.tried.append(floats)
        return Form(() if self.culprits <= {name for _, name in floats} else ("agreement",))

    def search(self, order: str) -> set[str] | None:
        ranked = [next(block for block in BLOCKS if block[0][1][0] == letter) for letter in order]
        found = search_floats(Form(("agreement",)), self.attempt, lambda _: ranked)
        if found is None:
            return None
        assert not found.faults
        passed = [floats for floats in self.tried if self.culprits <= {name for _, name in floats}]
        return {name for _, name in passed[-1]}


@pytest.mark.parametrize(
    ("culprits", "order"),
    [
        (("cy",), "cabdefgh"),  # the first guess is right
        (("cy",), "abcdefgh"),  # two innocent blocks rank above it
        (("cw", "fz"), "fcabdegh"),
        (("cw", "fz"), "gfachdeb"),
        (("bw", "bz"), "bacdefgh"),  # both halves are needed: the block stays whole
    ],
)
def test_the_culprits_alone_stay_in_float(culprits: tuple[str, ...], order: str) -> None:
    found = Gate(*culprits).search(order)
    assert found is not None
    assert found == (
        set(culprits) if len({name[0] for name in culprits}) == len(culprits) else {"bw", "bx", "by", "bz"}
    )


def test_more_than_half_in_float_is_no_int8() -> None:
    gate = Gate("aw", "bw", "cw", "dw", "ew")
    assert gate.search("abcdefgh") is None
    assert max(len(floats) for floats in gate.tried) == 16


def test_what_a_block_adds_is_its_own() -> None:
    found = own_errors({"a": 1.0, "b": 0.75, "c": 0.875, "d": 0.5})
    assert found == {"a": 0.0, "b": 0.25, "c": 0.0, "d": 0.375}


def test_the_block_that_collapses_ranks_first(artifact, held_out_images: np.ndarray, tmp_path) -> None:
    inputs = [{"images": image[None]} for image in held_out_images[:4]]
    hard, int8 = tmp_path / "hard.onnx", tmp_path / "int8.onnx"
    ruin_projection(artifact.file(), hard, "blocks.1")
    quantize_dynamic_onnx(hard, int8, full_range=True)
    cosine = block_cosines(hard, int8, inputs)
    assert list(cosine) == [block.name for block in blocks_of(hard)]
    assert cosine["patch_embed"] == pytest.approx(1, abs=1e-6)
    assert cosine["blocks.0"] > 0.999 and cosine["blocks.1"] < 0.99
    assert block_cosines(hard, hard, inputs) == pytest.approx(dict.fromkeys(cosine, 1.0), abs=1e-9)
    first, *_ = rank_blocks([SourceGraph("", hard, inputs)], [int8])
    assert first == tuple(("", node) for node in next(b for b in blocks_of(hard) if b.name == "blocks.1").nodes)
