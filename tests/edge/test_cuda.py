"""The binding of NVIDIA's driver: against a compiled stand-in, and what is said without driver or GPU."""

import ctypes

import numpy as np
import pytest
from fake_cuda import fake_driver

from edgemim.edge import cuda as module
from edgemim.edge.cuda import Cuda, gpu_fault
from edgemim.errors import ModelRefused, NoGpu


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fake_driver(tmp_path_factory.mktemp("cuda"))


def test_the_gpu_is_described(library: str) -> None:
    cuda = Cuda(library)
    found = (cuda.name, cuda.driver, cuda.capability, cuda.memory_gib)
    assert found == ("NVIDIA Paper 9000", "13.2", "9.1", 3.0)


def test_what_goes_up_comes_down_and_memory_is_given_back(library: str) -> None:
    cuda = Cuda(library)
    stream = cuda.stream()
    array = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    pointer, back = cuda.allocate(array.nbytes), np.zeros_like(array)
    cuda.upload(pointer, array, stream)
    cuda.download(back, pointer, stream)
    cuda.synchronize(stream)
    assert np.array_equal(array, back)
    cuda.free(pointer)
    assert ctypes.CDLL(library).fake_living() == 0


def test_without_a_driver_or_a_gpu_there_is_one_sentence(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoGpu, match="no NVIDIA driver here") as caught:
        Cuda("libnosuchdriver.so.1")
    assert caught.value.exit_code == 5
    monkeypatch.setenv("FAKE_CUDA_FAULT", "cuInit")
    with pytest.raises(NoGpu, match=r"refuses cuInit: CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        Cuda(library)
    monkeypatch.delenv("FAKE_CUDA_FAULT")
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    with pytest.raises(NoGpu, match="CUDA_VISIBLE_DEVICES"):
        Cuda(library)


def test_a_full_gpu_is_no_crash(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(library)
    monkeypatch.setenv("FAKE_CUDA_FAULT", "cuMemAlloc_v2")
    with pytest.raises(ModelRefused, match="cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"):
        cuda.allocate(16)


def test_looking_takes_no_memory_of_the_gpu(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_FAULT", "cuDevicePrimaryCtxRetain")
    assert Cuda(library, context=False).name == "NVIDIA Paper 9000"
    monkeypatch.setattr(module.Cuda.__init__, "__defaults__", (library,))
    gpu_fault.cache_clear()
    assert gpu_fault() is None
    monkeypatch.setattr(module.Cuda.__init__, "__defaults__", ("libnosuchdriver.so.1",))
    gpu_fault.cache_clear()
    assert "no NVIDIA driver" in (gpu_fault() or "")
    gpu_fault.cache_clear()
