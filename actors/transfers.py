"""What crosses between two workers while one fetches an encoding from the other. Knows neither Ray nor torch."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from laban.actors.reach import Reach, Transport
from laban.kvstore.encodings import EncodingId

Rows = NDArray[Any]
"""Keys and values of some tokens, as integers of the elements' size:
[2, num_layers, num_tokens, num_kv_heads, head_dim], keys first."""


Slots = tuple[tuple[int, int], ...]
"""(first, length) of slots of a host pool, in the order of an encoding's tokens."""


@dataclass(frozen=True, slots=True)
class Window:
    """Where a worker's host pool lies, for others to read what is lent to them there.

    `keys` and `values` are addresses in its process, of [num_layers, num_slots, row_bytes] each.
    """

    transport: Transport
    dtype: str
    num_layers: int
    num_slots: int
    row_bytes: int  # of a token's keys, or values, in one layer
    keys: int
    values: int
    process: tuple[int, int]  # its id, and when it started, in ticks since boot
    agent: bytes = b""  # what NIXL's agent says of itself


@dataclass(frozen=True, slots=True)
class Refused:
    """The other worker does not send it, or not any more."""

    why: str


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease: until it is closed, or nobody has asked for anything for a while, these tokens stay where they are.

    It is the same in all shards of a worker: each has lent its part under the lease's id.
    """

    lease_id: int
    num_tokens: int
    chunk_tokens: int
    """What to ask for at once, and from which multiples on."""
    lease_s: float
    """From the last request on; so whoever read within this time of having sent one has read what was lent."""
    window: Window | None = None  # None: it has to be asked for chunks
    slots: Slots = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    rows: Rows
    checksum: int


def checksum_of(encoding_id: EncodingId, begin: int, rows: Rows) -> int:
    """Of tokens of that encoding from `begin` on: rows that belong elsewhere have another."""
    seed = zlib.crc32(struct.pack("<Q", begin), zlib.crc32(encoding_id.encode()))
    return zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data, seed)


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """An encoding in a worker's host memory, pinned there. Any thread may read, until the engine is told the end.

    `number` counts up in the life of an engine, alike in all shards of a worker.
    """

    number: int
    encoding_id: EncodingId
    num_tokens: int
    bytes_per_token: int
    read: Callable[[int, int], Rows]
    slots: Slots = ()
    window: Callable[[Transport], Window | Refused] = lambda transport: Refused("its memory is not open to others")
    entry: Any = None  # the engine's own


def chunk_from(export: Export, begin: int, end: int) -> Chunk | Refused:
    """Its tokens [begin, end)."""
    if not 0 <= begin < end <= export.num_tokens:
        return Refused(f"tokens [{begin}, {end}) were asked for, there are {export.num_tokens}")
    rows = export.read(begin, end)
    return Chunk(rows, checksum_of(export.encoding_id, begin, rows))


@dataclass(frozen=True, slots=True, eq=False)
class ExportRequest:
    """Asks a worker's engine for an Export, which `reply` gets. One that was cancelled meanwhile pins nothing."""

    encoding_id: EncodingId
    reply: Future[Export | Refused] = field(default_factory=Future)

    def answer(self, make: Callable[[], Export | Refused]) -> bool:
        """False if nobody waits any more: then nothing was made."""
        if not self.reply.set_running_or_notify_cancel():
            return False
        try:
            self.reply.set_result(make())
        except BaseException as error:
            self.reply.set_exception(error)
            raise
        return True


class PeerLost(Exception):
    """The other worker is gone, or does not answer."""


class TransportFailed(Exception):
    """The other worker's memory cannot be read this way; another way may do."""


class NoBuffer(TransportFailed):
    """Who reads has no memory to read into for now, which says nothing of the other worker."""


class PeerPort(Protocol):
    """One life of another worker, as one that fetches from it sees it. Methods raise PeerLost, but for `close`."""

    @property
    def reach(self) -> Reach: ...

    def open(self, encoding_id: EncodingId, transport: Transport) -> Granted | Refused:
        """Waits until the encoding lies where it can be read. Without a window it has to be asked for chunks."""
        ...

    def renew(self, lease_id: int) -> Refused | None:
        """Waits. None: the lease has held since it was granted, and goes on."""
        ...

    def ask(self, lease_id: int, begin: int, end: int) -> Callable[[], Chunk | Refused]:
        """Does not wait; what is returned does. Several may be asked for at once."""
        ...

    def close(self, lease_id: int) -> None:
        """Does not wait, raises nothing."""


@dataclass(frozen=True, slots=True)
class PeerNews:
    """Tells a worker whom it may fetch from: (id, epoch, reach, a handle for each shard) of those that came, ids of
    those that went."""

    joined: tuple[tuple[str, str, Reach, tuple[Any, ...]], ...] = ()
    left: tuple[str, ...] = ()


FindPeer = Callable[[str, str], PeerPort | None]
"""From a worker's id and epoch; None for one that is not known in that life."""
