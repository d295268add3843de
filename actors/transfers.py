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

from laban.kvstore.encodings import EncodingId

Rows = NDArray[Any]
"""Keys and values of some tokens, as integers of the elements' size:
[2, num_layers, num_tokens, num_kv_heads, head_dim], keys first."""


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


class PeerPort(Protocol):
    """One life of another worker, as one that fetches from it sees it. Everything raises PeerLost but `close`."""

    def open(self, encoding_id: EncodingId) -> Granted | Refused:
        """Waits until the encoding lies where it can be read."""
        ...

    def ask(self, lease_id: int, begin: int, end: int) -> Callable[[], Chunk | Refused]:
        """Does not wait; what is returned does. Several may be asked for at once."""
        ...

    def close(self, lease_id: int) -> None:
        """Does not wait, raises nothing."""


@dataclass(frozen=True, slots=True)
class PeerNews:
    """Tells a worker whom it may fetch from: (id, epoch, a handle for each shard) of those that came, ids of those that
    went."""

    joined: tuple[tuple[str, str, tuple[Any, ...]], ...] = ()
    left: tuple[str, ...] = ()


FindPeer = Callable[[str, str], PeerPort | None]
"""From a worker's id and epoch; None for one that is not known in that life."""
