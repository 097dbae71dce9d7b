from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_artifact import tiny_artifact

from edgemim.edge.artifact import create, describe_file
from edgemim.edge.runtime import onnxruntime as module
from edgemim.edge.runtime import open_session
from edgemim.edge.runtime.onnxruntime import OnnxRuntimeSession
from edgemim.errors import MissingLibrary, ModelRefused


def test_runs_on_the_cpu_provider_with_its_own_thread_pool(tmp_path: Path) -> None:
    session = OnnxRuntimeSession(tiny_artifact(tmp_path).file(), "fp32", 2)
    assert session._session.get_providers() == ["CPUExecutionProvider"]
    assert session._session.get_session_options().intra_op_num_threads == 2


def test_a_model_that_only_the_runtime_can_judge_is_refused_with_its_reason(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path)
    model = onnx.load(artifact.file())
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, artifact.file())
    entry = describe_file(tmp_path, "model.onnx", format="onnx", precision="fp32")
    artifact = create(tmp_path, artifact.manifest.model_copy(update={"files": {"onnx-fp32": entry}}))
    with pytest.raises(ModelRefused, match=r"ONNX Runtime .* refuses .*NoSuchOperator") as caught:
        open_session(artifact)
    assert caught.value.exit_code == 6


def test_outputs_carry_the_names_of_the_graph(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path)
    model = onnx.load(artifact.file())
    model.graph.output.append(onnx.helper.make_tensor_value_info("hidden1", onnx.TensorProto.FLOAT, ["batch", 32]))
    onnx.save(model, tmp_path / "two.onnx")
    found = OnnxRuntimeSession(tmp_path / "two.onnx", "fp32", 1).run({"images": np.ones((3, 3, 16, 16), np.float32)})
    assert {name: value.shape for name, value in found.items()} == {"logits": (3, 4), "hidden1": (3, 32)}


def test_a_provider_that_is_not_loaded_is_never_replaced_by_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(MissingLibrary, match="cannot load its NoSuchExecutionProvider and would compute on the CPU"):
        OnnxRuntimeSession(tiny_artifact(tmp_path).file(), "fp32", 1, provider="NoSuchExecutionProvider")


def test_a_provider_that_leaves_the_products_to_the_cpu_is_refused(tmp_path: Path) -> None:
    """Azure's is in every build and takes no node of such a graph: the real thing, not a stand-in."""
    provider = "AzureExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no provider besides the CPU's")
    path = tiny_artifact(tmp_path).file()
    assert onnxruntime.InferenceSession(path, providers=[provider]).get_providers()[0] == provider  # not a word
    with pytest.raises(ModelRefused, match=r"takes 0 of 2 products .* left over: MatMul \(CPUExecutionProvider\)"):
        OnnxRuntimeSession(path, "fp32", 1, provider=provider)


def test_all_products_on_the_provider_and_shapes_on_the_cpu_are_well(tmp_path: Path) -> None:
    from types import SimpleNamespace

    def part(provider: str, *operators: str) -> SimpleNamespace:
        nodes = [SimpleNamespace(name="", op_type=name) for name in operators]
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

    def check(*parts: SimpleNamespace) -> None:
        session = SimpleNamespace(
            get_providers=lambda: ["GpuProvider"], get_provider_graph_assignment_info=lambda: parts
        )
        module._check_provider(session, "GpuProvider", tmp_path)  # pyright: ignore[reportArgumentType]

    check(part("GpuProvider", "MatMul", "FusedConv", "Softmax"), part("CPUExecutionProvider", "Shape", "Gather"))
    with pytest.raises(ModelRefused, match="takes 1 of 2 products"):
        check(part("GpuProvider", "MatMul"), part("CPUExecutionProvider", "MatMulInteger"))
