"""Building engines, by tensorrt-rtx, which needs no GPU for it."""

import hashlib
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_artifact import tiny_artifact, tiny_model

from edgemim.edge.runtime.engine_cache import EngineCache, engine_key
from edgemim.edge.runtime.engines import EngineLibrary, Shapes, any_batch
from edgemim.errors import ModelRefused


@pytest.fixture(scope="module")
def library() -> EngineLibrary:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'edgemim[tensorrt]'")
    return EngineLibrary("tensorrt_rtx")


def test_shapes_of_free_and_fixed_batches() -> None:
    free = Shapes.of((None, 3, 8, 8), typical_batch=4, largest_batch=32)
    assert (free.least, free.typical, free.largest) == ((1, 3, 8, 8), (4, 3, 8, 8), (32, 3, 8, 8))
    assert any_batch("images", (2, 3)) == Shapes((2, 3), (2, 3), (2, 3))
    assert any_batch("images", (-1, 3)).largest == (16, 3)


def test_an_engine_is_built_cached_and_bound_to_its_file(library: EngineLibrary, tmp_path: Path) -> None:
    """The cache's life with real engines; loading one takes a GPU, so a stand-in compares bytes."""
    path = tiny_artifact(tmp_path / "artifact").file()
    cache, built = EngineCache(tmp_path / "cache"), []

    def ready() -> bool:
        facts = {"library": [library.name, library.version], "model": hashlib.sha256(path.read_bytes()).hexdigest()}

        def build() -> bytes:
            built.append(bytes(library.build(path, any_batch)))
            return built[-1]

        engine, new = cache.ready(engine_key(facts), build=build, load=lambda content: content)
        assert engine == built[-1] and len(engine) > 1000
        return new

    assert ready()
    assert not ready()
    onnx.save(tiny_model(16, 4, width=40), path)
    assert ready()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_refused_node_is_named_and_elimination_has_its_way_out(library: EngineLibrary, tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path, operator="NoSuchOperator")
    with pytest.raises(ModelRefused, match=r"parser refuses .*model\.onnx: node .*NoSuchOperator") as caught:
        library.build(artifact.file(), any_batch)
    assert "elimination" not in str(caught.value)
    # More than TensorRT can choose of.
    scores = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6000])
    best = helper.make_tensor_value_info("best", TensorProto.FLOAT, [1, 5000])
    places = helper.make_tensor_value_info("places", TensorProto.INT64, [1, 5000])
    count = helper.make_tensor("k", TensorProto.INT64, [1], [5000])
    chosen = helper.make_node("TopK", ["x", "k"], ["best", "places"], "chosen")
    graph = helper.make_graph([chosen], "graph", [scores], [best, places], [count])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "k.onnx")
    with pytest.raises(ModelRefused, match=r"builder refuses .*TopK.*chosen.*--no-elimination"):
        library.build(tmp_path / "k.onnx", any_batch)


def test_without_a_gpu_loading_gives_none_and_says_why(library: EngineLibrary, tmp_path: Path) -> None:
    from edgemim.edge.cuda import gpu_fault

    if gpu_fault() is None:
        pytest.skip("there is a GPU here")
    engine = library.build(tiny_artifact(tmp_path).file(), any_batch)
    assert library.load(bytes(engine)) is None
    assert "CUDA" in library.said() or "cuda" in library.said()
