"""Memory of the machine: how much there is, and blocks of it that the card's copy engines reach by themselves.

Pinning page by page takes a second a GiB, most of it in finding pages of 4 KiB. So a block lies in huge pages where the
system has them, is touched by several threads at once, and only then made known to the card.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from laban.actors.engine.config import CPU_HOST_BYTES
from laban.actors.engine.cuda_runtime import cuda_runtime
from laban.actors.errors import Exhausted
from laban.actors.machine_memory import memory_bytes

logger = logging.getLogger(__name__)

HUGE_PAGE = 2 << 20
SMALL_PAGE = 4096
MOST_TOUCHERS = 16
PORTABLE_AND_MAPPED = 3  # cudaHostRegisterPortable | cudaHostRegisterMapped: for every stream, and for kernels
GPU_SHARE = 0.25

Share = Callable[[float], None]


class HostBlock:
    """`num_bytes` zeros of host memory as the uint8 tensor `bytes`; with `pinned`, where CUDA can have it so.

    `is_pinned` says what came of it. Nothing may read or write the tensor after `close`.
    """

    def __init__(self, num_bytes: int, *, pinned: bool, progress: Share = lambda share: None) -> None:
        """Takes about 0.2 s a GiB to pin. `progress` is told the share that is done. Raises Exhausted where the system
        does not give so much."""
        self.num_bytes = num_bytes
        self._registered: int | None = None
        self.bytes = _mapped(num_bytes)
        self.is_pinned = pinned and self._pin(progress)
        progress(1.0)

    def _pin(self, progress: Share) -> bool:
        _touch(self.bytes, lambda share: progress(0.6 * share))
        try:
            _register(self.bytes)
        except RuntimeError as error:
            logger.warning("%d MiB of host memory: %s; trying torch's allocator", self.num_bytes >> 20, error)
        else:
            self._registered = self.bytes.data_ptr()
            return True
        try:
            self.bytes = torch.zeros(self.num_bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            logger.warning("host memory cannot be pinned, so copies will be slow: %s", error)
            return False
        return True

    def close(self) -> None:
        """Gives the memory back. Copies to and from it must have ended."""
        if self._registered is not None:
            torch.cuda.cudart().cudaHostUnregister(self._registered)  # type: ignore[no-untyped-call]
            self._registered = None
        self.bytes = torch.empty(0, dtype=torch.uint8)


def _mapped(num_bytes: int) -> Tensor:
    """Zeros that take memory when they are first touched, in huge pages if the system allows it."""
    try:
        room = mmap.mmap(-1, max(num_bytes, 1) + HUGE_PAGE)
    except (OSError, OverflowError) as error:
        why = f"{num_bytes} bytes of host memory cannot be had ({error})"
        raise Exhausted(why, field="cache.host_bytes") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            room.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            logger.debug("no huge pages here")
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    return torch.frombuffer(room, dtype=torch.uint8, count=num_bytes, offset=-address % HUGE_PAGE)


def _touch(block: Tensor, progress: Share) -> None:
    """Writes to every page, so that the system clears them on all cores instead of one by one as they are pinned."""
    pages = block.numpy()
    num_threads = min(MOST_TOUCHERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    part = -(-len(pages) // (4 * num_threads) // HUGE_PAGE or 1) * HUGE_PAGE
    with ThreadPoolExecutor(num_threads) as threads:
        parts = [threads.submit(_clear, pages[at : at + part]) for at in range(0, len(pages), part)]
        for number, future in enumerate(as_completed(parts), 1):
            future.result()
            progress(number / len(parts))


def _clear(pages: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    pages[::SMALL_PAGE] = 0


def _register(block: Tensor) -> None:
    """Raises RuntimeError."""
    runtime_ = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    result = runtime_.cudaHostRegister(block.data_ptr(), block.numel(), PORTABLE_AND_MAPPED)
    if int(result) != 0:
        if (runtime := cuda_runtime()) is not None:
            runtime.clear_error()
        raise RuntimeError(f"cudaHostRegister failed with {result}")


def default_host_bytes(*, on_gpu: bool, workers_sharing: int, root: Path = Path("/")) -> int:
    """For one of `workers_sharing` workers of a machine: its part of a quarter of the memory, on a CPU 256 MiB."""
    if not on_gpu:
        return CPU_HOST_BYTES
    return int(GPU_SHARE * memory_bytes(root)) // max(workers_sharing, 1)
