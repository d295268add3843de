"""The two ways in which a transfer's tokens come: chunks that are sent, and memory that is read while it is lent.

Of both one asks for several ranges at once, and what is asked for returns, once it is there, why it must not be used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from laban.actors.engine.copy_pieces import pieces_of
from laban.actors.engine.direct import Reader
from laban.actors.engine.disk_folder import rows_of
from laban.actors.engine.runs import Runs, between
from laban.actors.transfers import Granted, PeerPort, Refused, checksum_of
from laban.kvstore.encodings import EncodingId

# Chunks lie in shared memory that is only to be read; and they are only read.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

RENEW_SHARE = 0.5
SURE_SHARE = 0.9
"""Of a lease's time: after the first it is renewed, until the second it is sure to hold."""

Write = Callable[[int, int, Tensor], None]
RunsOf = Callable[[int, int], Runs]
"""The slots in one's own pool of tokens [begin, end)."""
Problem = str | None


class Landing(Protocol):
    """Raises PeerLost and TransportFailed."""

    def ask(self, begin: int, end: int) -> Callable[[], tuple[Problem, int]]:
        """Does not wait; what is returned does, and says how many bytes have come."""
        ...

    def keep(self) -> Problem:
        """After each range that has come."""
        ...

    def finish(self) -> None:
        """Waits until nothing writes to the pool any more. Raises nothing."""


class SentLanding:
    """Chunks with checksums, written to the pool by who waits for them."""

    def __init__(
        self, peer: PeerPort, granted: Granted, encoding_id: EncodingId, write: Write, dtype: torch.dtype
    ) -> None:
        self._peer, self._lease_id, self._encoding_id = peer, granted.lease_id, encoding_id
        self._write, self._dtype = write, dtype

    def ask(self, begin: int, end: int) -> Callable[[], tuple[Problem, int]]:
        take = self._peer.ask(self._lease_id, begin, end)

        def landed() -> tuple[Problem, int]:
            chunk = take()
            if isinstance(chunk, Refused):
                return f"it refused: {chunk.why}", 0
            if checksum_of(self._encoding_id, begin, chunk.rows) != chunk.checksum:
                return f"tokens from {begin} on are damaged: their checksum is wrong", 0
            self._write(begin, end, rows_of(chunk.rows, self._dtype))
            return None, chunk.rows.nbytes

        return landed

    def keep(self) -> Problem:
        """The checksum has told already."""
        return None

    def finish(self) -> None:
        """Nobody else writes to the pool."""


class ReadLanding:
    """The other worker's memory, read by several threads straight into the pool.

    There is no checksum: what is read within the time of the lease, counted from before it was asked for, is what
    was lent, and links and systems check what they carry.
    """

    def __init__(
        self,
        peer: PeerPort,
        granted: Granted,
        reader: Reader,
        runs: RunsOf,
        bytes_per_token: int,
        threads: ThreadPoolExecutor,
        asked_s: float,
        clock: Callable[[], float],
    ) -> None:
        """`asked_s` is when the lease was asked for."""
        self._peer, self._granted, self._reader, self._runs = peer, granted, reader, runs
        self._bytes_per_token, self._threads, self._clock = bytes_per_token, threads, clock
        self._held_from_s = asked_s
        self._reads: set[Future[None]] = set()

    def ask(self, begin: int, end: int) -> Callable[[], tuple[Problem, int]]:
        pieces = pieces_of(between(list(self._granted.slots), begin, end), self._runs(begin, end))
        read = self._threads.submit(self._reader.read, pieces)
        self._reads.add(read)
        return partial(self._landed, read, (end - begin) * self._bytes_per_token)

    def keep(self) -> Problem:
        is_due = self._clock() - self._held_from_s > RENEW_SHARE * self._granted.lease_s
        return self._renew() if is_due else None

    def finish(self) -> None:
        # What the closing of its threads has cancelled already is told to nobody who waits.
        wait([read for read in self._reads if not read.cancel()])

    def _landed(self, read: Future[None], num_bytes: int) -> tuple[Problem, int]:
        read.result()
        self._reads.discard(read)
        is_sure = self._clock() - self._held_from_s < SURE_SHARE * self._granted.lease_s
        return (None if is_sure else self._renew()), num_bytes

    def _renew(self) -> Problem:
        asked_s = self._clock()
        refused = self._peer.renew(self._granted.lease_id)
        if refused is not None:
            return f"it refused: {refused.why}"
        self._held_from_s = asked_s
        return None
