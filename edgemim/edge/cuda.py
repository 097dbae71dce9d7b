"""As much of CUDA as running an engine takes, by the driver's own library: what the GPU is, its memory, one stream.

libcuda comes with every NVIDIA driver (on Jetson too), so nothing is to be installed. Functions and their numbers are
those of the CUDA driver API's reference.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Any

import numpy as np

from edgemim.errors import ModelRefused, NoGpu

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class Cuda:
    """The first GPU that the driver shows (CUDA_VISIBLE_DEVICES chooses), with its primary context made current.

    With `context=False` it is only looked at: nothing is taken of its memory.

    Attributes:
        name: the GPU's name.
        driver: version of CUDA that the driver knows, as in "13.0".
        capability: compute capability, as in "9.0".
        memory_gib: memory of the GPU.

    Raises:
        NoGpu: if there is no driver, or it has no GPU to show.
    """

    def __init__(self, library: str = LIBRARY, *, context: bool = True) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise NoGpu(f"there is no NVIDIA driver here ({library} cannot be loaded)") from error
        self._call("cuInit", ctypes.c_uint(0), fault=NoGpu)
        count, version, device = c_int(), c_int(), c_int()
        self._call("cuDriverGetVersion", byref(version))
        self._call("cuDeviceGetCount", byref(count), fault=NoGpu)
        if not count.value:
            raise NoGpu("the NVIDIA driver shows no GPU; is CUDA_VISIBLE_DEVICES empty?")
        self._call("cuDeviceGet", byref(device), c_int(0))
        self.driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self._describe(device)
        self._context = c_void_p()
        if not context:
            return
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), device, fault=NoGpu)
        self.enter()

    def _describe(self, device: c_int) -> None:
        name, size = ctypes.create_string_buffer(256), c_size_t()
        self._call("cuDeviceGetName", name, c_int(len(name)), device)
        self._call("cuDeviceTotalMem_v2", byref(size), device)
        parts = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            part = c_int()
            self._call("cuDeviceGetAttribute", byref(part), c_int(attribute), device)
            parts.append(str(part.value))
        self.name, self.capability = name.value.decode("utf-8", "replace"), ".".join(parts)
        self.memory_gib = round(size.value / 2**30, 1)

    def enter(self) -> None:
        """Make the context current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """A new stream's handle."""
        handle = c_void_p()
        self._call("cuStreamCreate", byref(handle), ctypes.c_uint(1))  # does not wait for the default stream
        return handle.value or 0

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has done its work."""
        self._call("cuStreamSynchronize", c_void_p(stream))

    def allocate(self, size: int) -> int:
        """Address of so many bytes on the GPU."""
        pointer = c_uint64()
        self._call("cuMemAlloc_v2", byref(pointer), c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", c_uint64(pointer))

    def upload(self, pointer: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the GPU, in the order of the stream."""
        source, size = c_void_p(array.ctypes.data), c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", c_uint64(pointer), source, size, c_void_p(stream))

    def download(self, array: np.ndarray, pointer: int, stream: int) -> None:
        """Copy from the GPU into a contiguous array, in the order of the stream."""
        target, size = c_void_p(array.ctypes.data), c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, c_uint64(pointer), size, c_void_p(stream))

    def _call(self, function: str, *arguments: Any, fault: type[NoGpu] | type[ModelRefused] = ModelRefused) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            name = c_char_p()
            self._library.cuGetErrorName(c_int(status), byref(name))
            said = (name.value or b"unknown error").decode()
            raise fault(f"the NVIDIA driver refuses {function}: {said} ({status})")


@cache
def gpu_fault() -> str | None:
    """Why no GPU is usable here, in words, or None."""
    try:
        Cuda(context=False)
    except (NoGpu, ModelRefused) as error:
        return str(error)
    return None
