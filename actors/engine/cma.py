"""Cross-memory attach: a process copies out of another's memory with one system call (Linux, process_vm_readv).

It needs no shared memory, and nothing of the other process. The system allows it between processes of one user that see
each other, unless it is hardened: Yama's ptrace_scope 1 asks for the other's consent, which `let_attach` gives, 2 and 3
allow it to nobody. Memory that is pinned for a card is read like any other.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import select
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laban.actors.engine.copy_pieces import Pieces
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.windows import check_slots, process_identity, spans, window_of
from laban.actors.transfers import PeerLost, TransportFailed, Window

MAX_SPANS = 1024  # IOV_MAX
PR_SET_PTRACER, ANYBODY = 0x59616D61, ctypes.c_ulong(-1)
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
ASKS_FOR_CONSENT, MOST_ALLOWED = 1, 1


class CmaReader:
    """Implements Reader. Everything is copied by the thread that asks, without Python's lock."""

    def __init__(self, window: Window, pool: HostPool) -> None:
        """Raises TransportFailed for a process that is not the one meant."""
        self._window, self._own = window, window_of(pool, "cma")
        pid, started = window.process
        try:
            self._process = os.pidfd_open(pid)
        except OSError as error:
            raise TransportFailed(f"process {pid}: {error.strerror}") from None
        weakref.finalize(self, os.close, self._process)
        if process_identity(pid) != started:
            raise TransportFailed(f"process {pid} is another one, or cannot be seen")

    def read(self, pieces: Pieces) -> None:
        window = self._window
        check_slots(pieces, window, self._own)
        there, here = spans(window, pieces[:, 0], pieces[:, 2]), spans(self._own, pieces[:, 1], pieces[:, 2])
        for begin in range(0, len(there), MAX_SPANS):
            self._copy(here[begin : begin + MAX_SPANS], there[begin : begin + MAX_SPANS])
        # A number is given to another process once its own has ended.
        if _has_ended(self._process):
            raise PeerLost(f"its process {window.process[0]} has ended")

    def _copy(self, here: NDArray[np.uint64], there: NDArray[np.uint64]) -> None:
        pid, expected = self._window.process[0], int(there[:, 1].sum())
        copied = _read_memory()(pid, here.ctypes.data, len(here), there.ctypes.data, len(there), 0)
        if copied == expected:
            return
        problem = ctypes.get_errno() if copied < 0 else errno.EFAULT
        if problem == errno.ESRCH or _has_ended(self._process):
            raise PeerLost(f"its process {pid} has ended")
        raise TransportFailed(f"process_vm_readv: {os.strerror(problem)}, {max(copied, 0)} of {expected} bytes")


def _has_ended(process: int) -> bool:
    """A process, by its pidfd. `select.select` takes no descriptor from 1024 on."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def can_attach() -> str:
    """Why no process can read another's memory here; "" if it can."""
    if not hasattr(os, "pidfd_open"):
        return "it takes Linux 5.3"
    try:
        scope = int(YAMA.read_text())
    except (OSError, ValueError):
        scope = 0
    if scope > MOST_ALLOWED:
        return f"{YAMA} is {scope}, expected 0 or 1"
    probe, copy = np.arange(2, dtype=np.uint64), np.zeros(2, np.uint64)
    there, here = (np.array([[each.ctypes.data, each.nbytes]], np.uint64) for each in (probe, copy))
    try:
        copied = _read_memory()(os.getpid(), here.ctypes.data, 1, there.ctypes.data, 1, 0)
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        return str(error)
    return "" if copied == probe.nbytes else f"process_vm_readv: {os.strerror(ctypes.get_errno())}"


@functools.cache
def let_attach() -> None:
    """Consents to being read by processes of this user. Only where Yama asks for it does it change anything."""
    if YAMA.exists() and YAMA.read_text().strip() == str(ASKS_FOR_CONSENT):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)


@functools.cache
def _read_memory() -> ctypes._NamedFuncPointer:
    """Raises AttributeError where the C library has no such call."""
    function = ctypes.CDLL(None, use_errno=True).process_vm_readv
    size, pointer = ctypes.c_ulong, ctypes.c_void_p
    function.argtypes, function.restype = [ctypes.c_int, pointer, size, pointer, size, size], ctypes.c_ssize_t
    return function
