"""Tensors inside a model file are read, on the runtime of its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemim.errors import ModelRefused
from edgemim.export.graph_blocks import blocks_of
from edgemim.export.probe import open_probe


def test_the_inside_is_the_same_on_both_runtimes(artifact, task, held_out_images: np.ndarray) -> None:
    import torch

    ends = [block.end for block in blocks_of(artifact.file())]
    given = {"images": held_out_images[:1]}
    found = open_probe(artifact.file(), [*ends, "no such tensor", ends[0]])(given)
    assert list(found) == ends
    seen = []
    handles = [block.register_forward_hook(lambda *call: seen.append(call[2])) for block in task.model.blocks]
    with torch.no_grad():
        logits = task.export_module()(torch.from_numpy(held_out_images[:1]))
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(found["add_2"], seen[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-4)
    np.testing.assert_array_equal(open_probe(artifact.file(), ())(given)["logits"], found["logits"])
    if "openvino-fp32" in artifact.manifest.files:
        other = open_probe(artifact.file("openvino-fp32"), ends)(given)
        for name in ends:
            np.testing.assert_allclose(other[name], found[name], atol=1e-4)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelRefused, match=r"broken.onnx cannot be read"):
        open_probe(tmp_path / "broken.onnx", ())
