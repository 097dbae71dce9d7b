"""The TensorRT session: fed and read through CUDA by a stand-in for both; with a GPU, parity and speed of the real one."""

import ctypes
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import fake_driver
from tiny_artifact import tiny_artifact

from edgemim.edge.cuda import Cuda
from edgemim.edge.runtime import missing, open_session
from edgemim.edge.runtime.engine_cache import EngineCache
from edgemim.edge.runtime.engines import EngineLibrary
from edgemim.edge.runtime.tensorrt import TensorRtSession, open_engine, open_library
from edgemim.errors import MissingLibrary, ModelRefused, UserError

SHAPES = {"images": ((-1, 3, 4, 4), (16, 3, 4, 4)), "logits": ((-1, 3), None)}


class Context:
    """Computes the mean of each channel, on the memory that it is told."""

    def __init__(self, works: bool = True) -> None:
        self.works, self.batch, self.addresses = works, 0, {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.batch = shape[0]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.batch, 3)

    def execute_async_v3(self, stream: int) -> bool:
        floats = ctypes.POINTER(ctypes.c_float)
        count = self.batch * 3
        images = np.ctypeslib.as_array(ctypes.cast(self.addresses["images"], floats), (count * 16,))
        logits = np.ctypeslib.as_array(ctypes.cast(self.addresses["logits"], floats), (count,))
        logits[:] = images.reshape(count, 16).mean(1)
        return self.works


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, works: bool = True) -> None:
        self.context = Context(works)

    def create_execution_context(self) -> Context:
        return self.context

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPES[name][0]

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple:
        return (None, None, SHAPES[name][1])

    def get_tensor_dtype(self, name: str) -> str:
        return "float"


class FakeLibrary:
    """Builds a word out of a file, loads that word only."""

    name, version = "tensorrt", "11.4"
    module = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="in"), nptype=lambda kind: np.float32)

    def __init__(self, works: bool = True) -> None:
        self.works, self.builds = works, 0

    def build(self, path: Path, shapes: object) -> memoryview:
        self.builds += 1
        return memoryview(b"engine of " + path.read_bytes())

    def load(self, content: bytes) -> FakeEngine | None:
        return FakeEngine(self.works) if content.startswith(b"engine of ") else None

    def said(self) -> str:
        return "no kernel image is available"


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Cuda:
    return Cuda(fake_driver(tmp_path_factory.mktemp("cuda")))


def opened(tmp_path: Path, cuda: Cuda, library: FakeLibrary, sha256: str = "a" * 64) -> TensorRtSession:
    (tmp_path / "model.onnx").write_bytes(b"model")
    cache = EngineCache(tmp_path / "cache")
    return open_engine(tmp_path / "model.onnx", sha256, "fp16", library=library, cuda=cuda, cache=cache)  # pyright: ignore


def test_batches_of_any_size_go_in_and_answers_survive_the_next_run(tmp_path: Path, cuda: Cuda) -> None:
    session = opened(tmp_path, cuda, FakeLibrary())
    assert (session.runtime, session.precision, session.library) == ("tensorrt", "fp16", "tensorrt 11.4")
    generator, kept = np.random.default_rng(0), []
    for batch in (1, 5, 2, 16):
        images = generator.standard_normal((batch, 3, 4, 4)).astype(np.float32)
        kept.append((session.run({"images": images})["logits"], images.mean((2, 3))))
    assert all(np.allclose(found, expected, atol=1e-6) for found, expected in kept)
    strided = np.ones((1, 4, 4, 3), np.float32).transpose(0, 3, 1, 2)
    assert np.array_equal(session.run({"images": strided})["logits"], np.ones((1, 3)))
    session.close()
    assert cuda._library.fake_living() == 0


def test_what_does_not_fit_is_named(tmp_path: Path, cuda: Cuda) -> None:
    session = opened(tmp_path, cuda, FakeLibrary())
    with pytest.raises(UserError, match="takes float32 any×3×4×4"):
        session.run({"images": np.zeros((1, 3, 5, 4), np.float32)})
    with pytest.raises(UserError, match=r"built for \(16, 3, 4, 4\) at most"):
        session.run({"images": np.zeros((17, 3, 4, 4), np.float32)})
    failing = opened(tmp_path, cuda, FakeLibrary(works=False))
    with pytest.raises(ModelRefused, match="no kernel image"):
        failing.run({"images": np.zeros((1, 3, 4, 4), np.float32)})


def test_the_engine_is_built_once_for_a_file_a_driver_and_a_library(tmp_path: Path, cuda: Cuda) -> None:
    library = FakeLibrary()
    assert opened(tmp_path, cuda, library).built
    assert not opened(tmp_path, cuda, library).built
    assert opened(tmp_path, cuda, library, sha256="b" * 64).built
    library.version = "11.5"
    assert opened(tmp_path, cuda, library).built
    driver, cuda.driver = cuda.driver, "14.0"
    assert opened(tmp_path, cuda, library).built
    cuda.driver = driver
    assert library.builds == 4


def test_an_empty_stub_and_a_missing_library_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingLibrary, match=r"__version__.*tensorrt_rtx.*pip install tensorrt"):
        open_library()
    sys.modules.pop("tensorrt", None)


def test_rtx_stands_in_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'edgemim[tensorrt]'")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert isinstance(open_library(), EngineLibrary) and open_library().name == "tensorrt_rtx"


@pytest.mark.tensorrt
@pytest.mark.skipif(missing("tensorrt") is not None, reason=str(missing("tensorrt")))
def test_on_a_gpu_answers_and_speed(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path, width=256, layers=8)
    session = open_session(artifact, runtime="tensorrt")
    assert isinstance(session, TensorRtSession) and session.built
    again = open_session(artifact, runtime="tensorrt")
    assert isinstance(again, TensorRtSession) and not again.built
    reference = open_session(artifact)
    for batch in (1, 7):
        images = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16)).astype(np.float32)
        found, expected = (each.run({"images": images})["logits"] for each in (again, reference))
        assert np.abs(found - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max())
    began = time.perf_counter()
    for _ in range(100):
        again.run({"images": images})
    assert (time.perf_counter() - began) / 100 < 0.02, "a tiny network takes less than 20 ms on any GPU"
