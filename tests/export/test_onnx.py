"""The ONNX file: one file, named, dynamic, without stale facts or foreign paths, and the same function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from edgemim.errors import ModelRefused
from edgemim.export.onnx import add_metadata, export_onnx, first_line, read_metadata


def test_one_file_with_named_ends_and_any_batch(artifact, task) -> None:
    model = onnx.load(artifact.file(), load_external_data=False)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits"]
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, 64, 64]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
    assert not model.graph.value_info
    assert artifact.manifest.parameters == sum(parameter.numel() for parameter in task.model.parameters())


def test_no_path_of_this_machine_is_inside(artifact, trained_run: Path) -> None:
    content = artifact.file().read_bytes()
    for text in ("site-packages", str(Path(torch.__file__).parents[1]), str(trained_run), str(Path.cwd())):
        assert text.encode() not in content


def test_onnx_own_reference_gives_pytorchs_answers(artifact, task, held_out_images: np.ndarray) -> None:
    images = held_out_images[:3]
    with torch.inference_mode():
        expected = task.export_module()(torch.from_numpy(images)).numpy()
    found = ReferenceEvaluator(str(artifact.file())).run(["logits"], {"images": images})
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


def test_the_file_says_how_to_feed_it(artifact, task) -> None:
    facts = read_metadata(artifact.file())
    assert facts["labels"] == list(task.labels)
    assert facts["image_size"] == 64
    assert facts["mean"] == [0.4, 0.4, 0.4]
    assert facts["std"] == [0.25, 0.25, 0.25]
    assert facts["interpolation"] == "bicubic"
    assert facts["opset"] == 20
    assert facts["task"] == "classification"
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["checkpoint_sha256"] == artifact.manifest.source["checkpoint_sha256"]


def test_fixed_batch(task, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    model = export_onnx(task.export_module(), task.example_input(3), path, dynamic_batch=False, opset=18)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [3, 3, 64, 64]
    assert [entry.version for entry in onnx.load(path).opset_import if not entry.domain] == [18]


def test_a_module_that_cannot_be_exported(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(ModelRefused, match="cannot export") as caught:
        export_onnx(Branching(), torch.ones(2, 3), tmp_path / "x.onnx", dynamic_batch=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()


def test_metadata_is_replaced_not_doubled() -> None:
    model = onnx.ModelProto()
    add_metadata(model, {"edgemim.a": "1", "other": "x"})
    add_metadata(model, {"edgemim.a": "2"})
    assert {entry.key: entry.value for entry in model.metadata_props} == {"edgemim.a": "2", "other": "x"}
    assert len(model.metadata_props) == 2


def test_first_line() -> None:
    assert first_line(ValueError("\n  a reason\nmore")) == "a reason"
    assert first_line(KeyError()) == "KeyError"
