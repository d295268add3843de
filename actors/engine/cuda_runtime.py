"""The few functions of the CUDA runtime that torch has no way to."""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2


class CudaRuntime:
    """The library that torch has loaded. Its calls return at once, so they keep Python's lock.

    To get that back among busy threads can take longer than the call.
    """

    def __init__(self, library: Any) -> None:
        """Raises AttributeError for a library that is not CUDA's runtime."""
        self._copy, self._clear = library.cudaMemcpy2DAsync, library.cudaGetLastError
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        self._copy.argtypes = [pointer, size, pointer, size, size, size, ctypes.c_int, pointer]
        self._clear.argtypes = []

    def copy_rectangle(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> int:
        """`height` lines of `width` bytes, so many bytes apart, on a stream. The runtime's status, 0 if it goes."""
        status = int(self._copy(target, target_pitch, source, source_pitch, width, height, kind, stream))
        if status != 0:
            self.clear_error()
        return status

    def clear_error(self) -> None:
        """Forgets that a call was refused, or the next launch of a kernel would be blamed."""
        self._clear()


@functools.cache
def cuda_runtime() -> CudaRuntime | None:
    """None if it is not to be found."""
    major = (torch.version.cuda or "").partition(".")[0]
    for name in (f"libcudart.so.{major}", "libcudart.so"):
        try:
            return CudaRuntime(ctypes.PyDLL(name))
        except (OSError, AttributeError):
            continue
    logger.warning("the CUDA runtime is not to be found, so smaller pieces are copied layer by layer or by a kernel")
    return None
