"""A stand-in for NVIDIA's driver, compiled for a test: its GPU's memory is the computer's own.

FAKE_CUDA_FAULT names a function that shall fail; FAKE_CUDA_DEVICES is the number of GPUs (1).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_CODE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static long living = 0;
static int fails(const char *name) {
    const char *fault = getenv("FAKE_CUDA_FAULT");
    return fault && !strcmp(fault, name) ? 2 : 0;
}
long fake_living(void) { return living; }
int cuInit(unsigned flags) { return flags ? 1 : fails("cuInit"); }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) {
    const char *set = getenv("FAKE_CUDA_DEVICES");
    *count = set ? atoi(set) : 1;
    return 0;
}
int cuDeviceGet(int *device, int number) { *device = number + 7; return 0; }
int cuDeviceGetName(char *name, int room, int device) {
    if (device != 7) return 101;
    strncpy(name, "NVIDIA Paper 9000", room);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 3ull << 30; return device == 7 ? 0 : 101; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 1 : -1;
    return device == 7 ? 0 : 101;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x5ee; return fails("cuDevicePrimaryCtxRetain"); }
int cuCtxSetCurrent(void *context) { return context == (void *)0x5ee ? 0 : 201; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)0xabc; return flags == 1 ? 0 : 1; }
int cuStreamSynchronize(void *stream) { return stream == (void *)0xabc ? fails("cuStreamSynchronize") : 400; }
int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
    if (fails("cuMemAlloc_v2")) return 2;
    *pointer = (uint64_t)malloc(bytes);
    living += 1;
    return 0;
}
int cuMemFree_v2(uint64_t pointer) { free((void *)pointer); living -= 1; return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t bytes, void *stream) {
    memcpy((void *)target, source, bytes);
    return stream == (void *)0xabc ? 0 : 400;
}
int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t bytes, void *stream) {
    memcpy(target, (const void *)source, bytes);
    return stream == (void *)0xabc ? 0 : 400;
}
int cuGetErrorName(int status, const char **name) {
    *name = status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
}
"""


def fake_driver(folder: Path) -> str:
    """Compile it into a folder; skips where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a stand-in for the NVIDIA driver with")
    (folder / "cuda.c").write_text(_CODE)
    library = folder / "libfakecuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "cuda.c")], check=True, timeout=60)
    return str(library)
