"""Where a host pool lies in a process's memory, as others see it, and where in it slots lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laban.actors.engine.copy_pieces import Pieces
from laban.actors.engine.host_pool import HostPool
from laban.actors.reach import Transport
from laban.actors.transfers import TransportFailed, Window


def window_of(pool: HostPool, transport: Transport, agent: bytes = b"") -> Window:
    num_layers = len(pool.k)
    return Window(
        transport,
        str(pool.k.dtype).removeprefix("torch."),
        num_layers,
        pool.num_slots,
        pool.bytes_per_token // (2 * num_layers),
        pool.k.data_ptr(),
        pool.v.data_ptr(),
        (os.getpid(), process_identity(os.getpid())),
        agent,
    )


def check_geometry(there: Window, here: Window) -> None:
    """Raises TransportFailed unless a row there is a row here."""
    theirs, own = ((each.dtype, each.num_layers, each.row_bytes) for each in (there, here))
    if theirs != own:
        raise TransportFailed(f"its keys and values are (dtype, layers, bytes a row) {theirs}, expected {own}")


def check_slots(pieces: Pieces, there: Window, here: Window) -> None:
    """Raises ValueError for slots that are in no pool: what lies there is somebody else's."""
    for side, num_slots in ((0, there.num_slots), (1, here.num_slots)):
        first, end = pieces[:, side].min(initial=0), (pieces[:, side] + pieces[:, 2]).max(initial=0)
        if first < 0 or end > num_slots:
            raise ValueError(f"slots {first}..{end - 1} are not in a pool of {num_slots}")


def spans(window: Window, first: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Addresses and sizes of runs of slots, keys of all layers and then values: [2 * num_layers * num_runs, 2]."""
    layers = np.arange(window.num_layers, dtype=np.int64)[:, None] * window.num_slots
    offsets = ((layers + first) * window.row_bytes).reshape(-1).astype(np.uint64)
    found = np.empty((2, len(offsets), 2), np.uint64)
    found[:, :, 0] = np.array([[window.keys], [window.values]], np.uint64) + offsets
    found[:, :, 1] = np.tile(lengths * window.row_bytes, window.num_layers)
    return found.reshape(-1, 2)


def process_identity(pid: int) -> int:
    """When it started, in ticks since boot, which a number used again does not share; -1 if it cannot be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[19])
