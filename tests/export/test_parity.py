"""The parity gate sees what it should: other outputs, a single moved weight, a baked-in batch, not-a-number."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from small_tracker import small_tracker

from edgemim.commands.export import ExportConfig, export_model
from edgemim.edge.runtime import open_session
from edgemim.errors import GateRefused, UserError
from edgemim.export.attention_form import split_attentions
from edgemim.export.parity import (
    Parity,
    check_weights,
    chunks,
    compare,
    cosines,
    figures_of,
    measure_parity,
    refuse_if_apart,
    run_batched,
)
from edgemim.export.tracking import graphs_of
from edgemim.tasks import TrackingTask, load_task


class Echo:
    """A session that computes with numpy and remembers the batches that it saw."""

    runtime, precision, threads = "echo", "fp32", 1

    def __init__(self, function, most: int | None = None) -> None:
        self.function, self.most, self.seen = function, most, []

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = inputs["images"]
        self.seen.append(len(images))
        return {"logits": self.function(images)}


def test_differences_by_hand() -> None:
    parity = compare(np.array([[3.0, 4.0], [0.0, 8.0]]), np.array([[3.0, 4.0], [0.0, 6.0]]))
    assert parity.images == 2
    assert parity.max_abs_error == 2
    assert parity.relative_error == pytest.approx(2 / 8)
    assert parity.cosine == pytest.approx(1)
    small = compare(np.array([[0.1, 0.0]]), np.array([[0.0, 0.1]]))
    assert small.relative_error == pytest.approx(0.1)  # outputs below 1 count absolutely
    assert small.cosine == pytest.approx(0)


def test_cosines_match_torch() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 5, 3, 7))
    expected = torch.nn.functional.cosine_similarity(torch.from_numpy(a).flatten(1), torch.from_numpy(b).flatten(1))
    np.testing.assert_allclose(cosines(a, b), expected.numpy(), rtol=1e-12)
    assert cosines(np.zeros((1, 3)), np.zeros((1, 3))) == 1
    assert cosines(np.zeros((1, 3)), np.ones((1, 3))) == 0


def test_not_a_number_is_refused() -> None:
    parity = compare(np.ones((2, 2)), np.array([[1.0, np.nan], [1.0, 1.0]]))
    with pytest.raises(GateRefused, match="off by nan"):
        refuse_if_apart({"x": parity}, 1e-4)


def test_a_fixed_batch_is_filled_up() -> None:
    images = np.arange(7, dtype=np.float32).reshape(7, 1)
    assert [chunk.ravel().tolist() for chunk in chunks(images, 3)] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    session = Echo(lambda x: x * 2)
    np.testing.assert_array_equal(run_batched(session, "images", images, 3)["logits"], images * 2)
    assert session.seen == [3, 3, 3]


def test_the_first_image_runs_alone() -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    batches = [np.ones((4, 2), np.float32), np.full((2, 2), 3, np.float32)]
    session = Echo(lambda x: x * 2)
    parity = measure_parity(Double(), {"echo": session}, batches)["echo"]
    assert session.seen == [1, 3, 2]
    assert parity.images == 6
    assert parity.max_abs_error == 0
    # A batch size baked in: right for the first image alone, wrong as soon as there are more.
    baked = Echo(lambda x: np.broadcast_to(x[:1] * 2, x.shape) * (1 + (len(x) > 1)))
    with pytest.raises(GateRefused, match="off by 1 from PyTorch"):
        refuse_if_apart(measure_parity(Double(), {"baked": baked}, batches), 1e-4)
    with pytest.raises(UserError, match="no held-out images"):
        measure_parity(Double(), {"echo": session}, [])


def test_the_exported_file_passes(artifact, task, held_out_images: np.ndarray) -> None:
    parity = measure_parity(task.export_module(), {"ort": open_session(artifact)}, [held_out_images])["ort"]
    assert parity.images == 32
    assert 0 < parity.max_abs_error < 2e-5
    assert parity.cosine > 0.999999
    refuse_if_apart({"ort": parity}, 1e-4)
    exported = split_attentions(task.export_module())
    found, total = check_weights(exported, artifact.file())
    assert found == total == len(list(exported.parameters()))


def move(path: Path, name: str, change) -> str:
    """Change the tensor of the file that holds parameter `name` (maybe transposed)."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    return tensor.name


def scale_all(array: np.ndarray) -> None:
    array *= np.float32(1.01)


def scale_one(array: np.ndarray) -> None:
    array.flat[np.abs(array).argmax()] *= np.float32(1.01)


@pytest.mark.parametrize("name", ["head.weight", "blocks.0.norm1.weight", "patch_embed.proj.weight"])
def test_one_tensor_moved_by_one_percent(artifact, task, held_out_images: np.ndarray, name: str) -> None:
    from edgemim.edge.runtime.onnxruntime import OnnxRuntimeSession

    move(artifact.file(), name, scale_all)
    session = OnnxRuntimeSession(artifact.file(), "fp32", 1)
    parity = measure_parity(task.export_module(), {"onnxruntime": session}, [held_out_images])
    with pytest.raises(GateRefused, match="on onnxruntime the exported model is off by"):
        refuse_if_apart(parity, 1e-4)


def test_one_single_weight_moved_by_one_percent(artifact, task) -> None:
    move(artifact.file(), "head.weight", scale_one)
    with pytest.raises(GateRefused, match=r"1 of 192 values of weight head.weight in model.onnx differ") as caught:
        check_weights(task.export_module(), artifact.file())
    assert "by up to" in str(caught.value)


def test_one_single_weight_of_a_transposed_matrix(artifact, task) -> None:
    """The exporter stores linear weights transposed and nameless; a moved value is found all the same."""
    matrix = task.model.blocks[1].mlp.fc2.weight.detach().numpy().T
    model = onnx.load(artifact.file())
    names = [t.name for t in model.graph.initializer if np.array_equal(numpy_helper.to_array(t), matrix)]
    assert len(names) == 1
    move(artifact.file(), names[0], scale_one)
    with pytest.raises(GateRefused, match=r"weight blocks\.1\.mlp\.fc2\.weight"):
        check_weights(task.export_module(), artifact.file())


def test_figures_keep_the_worst_and_each() -> None:
    found = {"a": Parity(5, 0.1, 0.01, 0.9), "b": Parity(5, 0.2, 0.005, 0.99)}
    figures = figures_of(found, 0.5, prefix="fp16_")
    assert figures["fp16_max_abs_error"] == 0.2 == figures["b_max_abs_error"]
    assert (figures["fp16_relative_error"], figures["fp16_cosine"], figures["fp16_tolerance"]) == (0.01, 0.9, 0.5)
    assert figures_of({}, 0.5) == {}
    assert np.isnan(figures_of({**found, "c": Parity(1, float("nan"), 1, 1)}, 0.5)["max_abs_error"])


def refused_and_not(module: torch.nn.Module, path: Path, place: Path) -> tuple[int, list[str]]:
    """How many tensors of the file's weights were refused when their largest value moved by 1 %, and which were not."""
    assert check_weights(module, path)[0] > 10
    known = {form.tobytes() for p in module.parameters() for form in (p.detach().numpy(), p.detach().numpy().T.copy())}
    moved = shutil.copy(path, place / path.name)
    refused, missed = 0, []
    for index, tensor in enumerate(onnx.load(path).graph.initializer):
        array = numpy_helper.to_array(tensor).copy()
        if array.tobytes() not in known or not array.any() or array.size < 3:
            continue
        array.flat[np.abs(array).argmax()] *= np.float32(1.01)
        model = onnx.load(path)
        model.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, moved)
        try:
            check_weights(module, Path(moved))
            missed.append(tensor.name)
        except GateRefused as error:
            refused += "parity refused: 1 of " in str(error)
    return refused, missed


def test_any_moved_weight_of_a_classifier_is_refused(artifact, task, tmp_path: Path) -> None:
    refused, missed = refused_and_not(task.export_module(), artifact.file(), tmp_path)
    assert refused > 25 and not missed


def test_any_moved_weight_of_a_segmenter_is_refused(segmenter, segmentation_task, tmp_path: Path) -> None:
    refused, missed = refused_and_not(segmentation_task.export_module(), segmenter.file(), tmp_path)
    assert refused > 25 and not missed


@pytest.mark.parametrize("form", ["joint", "cached"])
def test_any_moved_weight_of_a_tracker_is_refused(form: str, tmp_path: Path) -> None:
    run = small_tracker(tmp_path / form, form)
    export_model(ExportConfig(run=run, out=tmp_path / "artifact", parity_images=2))
    task = load_task(run)
    assert isinstance(task, TrackingTask)
    for graph in graphs_of(task.model, elimination=True):
        path = tmp_path / "artifact" / f"model{graph.suffix}.onnx"
        refused, missed = refused_and_not(graph.module, path, tmp_path)
        assert refused > 10 and not missed
