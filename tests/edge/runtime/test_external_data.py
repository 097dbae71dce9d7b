import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, helper, numpy_helper
from tiny_artifact import tiny_artifact, tiny_model

from edgemim.edge.artifact import Artifact, create, describe_file
from edgemim.edge.runtime import open_session
from edgemim.edge.runtime.external_data import external_files
from edgemim.errors import ModelRefused, UserError


def with_external_data(folder: Path, location: str) -> Path:
    """model.onnx in `folder` with weights in `location` beside it."""
    folder.mkdir(exist_ok=True)
    onnx.save(
        tiny_model(16, 4),
        folder / "model.onnx",
        save_as_external_data=True,
        location=location,
        size_threshold=0,
    )
    return folder / "model.onnx"


def as_artifact(folder: Path, companions: list[str]) -> Artifact:
    manifest = tiny_artifact(folder.parent / "pattern").manifest
    entry = describe_file(folder, "model.onnx", format="onnx", precision="fp32", companions=companions)
    return create(folder, manifest.model_copy(update={"files": {"onnx-fp32": entry}}))


def test_weights_beside_the_model_run_when_listed(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "a", "weights.data")
    assert external_files(path) == {"weights.data"}
    batch = {"images": np.ones((1, 3, 16, 16), np.float32)}
    session = open_session(as_artifact(path.parent, ["weights.data"]))
    expected = open_session(Artifact.open(tmp_path / "pattern")).run(batch)["logits"]
    assert np.array_equal(session.run(batch)["logits"], expected)


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "a", "weights.data")
    with pytest.raises(UserError, match=r"'weights\.data', that its manifest does not list"):
        open_session(as_artifact(path.parent, []))


@pytest.mark.parametrize(
    "location", ["../secret.data", "/tmp/secret.data", "sub/../../secret.data", "*/_ORT_MEM_ADDR_/*"]
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_weights_outside_the_folder_are_refused_by_name(tmp_path: Path, location: str, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    path = with_external_data(tmp_path / "a", "weights.data")
    shutil.move(tmp_path / "a" / "weights.data", tmp_path / "secret.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.ClearField("external_data")
        tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="reads another file") as caught:
        open_session(as_artifact(path.parent, []), runtime=runtime)
    assert repr(location) in str(caught.value)


def nested_everywhere() -> tuple[onnx.ModelProto, set[str]]:
    """A model with an external tensor in every place that onnx.proto has for one."""
    names: set[str] = set()

    def external(name: str) -> onnx.TensorProto:
        names.add(name)
        tensor = numpy_helper.from_array(np.ones(3, np.float32), name)
        external_data_helper.set_external_data(tensor, name)
        tensor.ClearField("raw_data")
        return tensor

    def graph(name: str) -> onnx.GraphProto:
        return helper.make_graph([], name, [], [], [external(f"{name}.initializer")])

    def sparse(name: str) -> onnx.SparseTensorProto:
        result = onnx.SparseTensorProto(dims=[3])
        result.values.CopyFrom(external(f"{name}.values"))
        result.indices.CopyFrom(external(f"{name}.indices"))
        return result

    node = helper.make_node("Foo", [], ["x"])
    node.attribute.append(helper.make_attribute("tensor", external("attribute.tensor")))
    node.attribute.append(helper.make_attribute("tensors", [external("attribute.tensors")]))
    node.attribute.append(helper.make_attribute("graph", graph("attribute.graph")))
    node.attribute.append(helper.make_attribute("graphs", [graph("attribute.graphs")]))
    node.attribute.append(helper.make_attribute("sparse", sparse("attribute.sparse")))
    node.attribute.append(helper.make_attribute("sparses", [sparse("attribute.sparses")]))
    main = helper.make_graph([node], "main", [], [], [external("main.initializer")])
    main.sparse_initializer.append(sparse("main.sparse"))
    model = helper.make_model(main)
    constant = helper.make_node("Constant", [], ["y"], value=external("function.node"))
    function = helper.make_function("d", "f", [], ["y"], [constant], [helper.make_opsetid("", 18)])
    function.attribute_proto.append(helper.make_attribute("default", external("function.attribute")))
    model.functions.append(function)
    training = model.training_info.add()
    training.initialization.CopyFrom(graph("training.initialization"))
    training.algorithm.CopyFrom(graph("training.algorithm"))
    return model, names


def test_every_place_for_a_tensor_is_searched(tmp_path: Path) -> None:
    model, names = nested_everywhere()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert len(names) == 15
    assert external_files(tmp_path / "m.onnx") == names


def test_a_plain_model_reads_nothing_else(tmp_path: Path) -> None:
    onnx.save(tiny_model(16, 4), tmp_path / "m.onnx")
    assert external_files(tmp_path / "m.onnx") == set()


@pytest.mark.parametrize(
    "content", [b"hello, this is no model", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 40, b"\x3f\x01"]
)
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelRefused, match=r"m\.onnx is not a readable ONNX file"):
        external_files(tmp_path / "m.onnx")


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    # graph in an attribute of a node of a graph ..., deeper than protobuf's own parsers follow
    message = b""
    for _ in range(60):
        message = field(1, field(5, field(6, message)))
    (tmp_path / "m.onnx").write_bytes(field(7, message))
    with pytest.raises(ModelRefused, match="nested too deeply"):
        external_files(tmp_path / "m.onnx")


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
