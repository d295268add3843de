"""The sending side of transfers: leases of encodings in a worker's host memory, and chunks of them for who asks.

A lease ends when it is closed or when nobody has asked for a chunk for a while, so that a reader that died pins
nothing for ever.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from laban.actors.calls import WorkerInfo
from laban.actors.reach import Transport
from laban.actors.transfers import Chunk, Export, ExportRequest, Granted, Refused, chunk_from
from laban.kvstore.encodings import EncodingId

logger = logging.getLogger(__name__)

LEASE_S = 10.0
OPEN_TIMEOUT_S = 5.0
MAX_LEASES = 64
"""Of a worker of one shard. Each shard of whoever reads has a lease of its own of each transfer."""
CHUNK_TOKENS = 256
CHUNK_BYTES = 8 << 20
"""A few of these are on their way at once: large enough that a message's cost is small, small enough to overlap."""


class ExportPort(Protocol):
    """What is needed of `laban.actors.worker.WorkerLoop`."""

    @property
    def info(self) -> WorkerInfo: ...
    def export(self, request: ExportRequest) -> None: ...
    def end_export(self, export: Export) -> None: ...


@dataclass(slots=True, eq=False)
class _Lease:
    export: Export
    until_s: float
    num_reading: int = 0


class Exporting:
    """Methods may be called by any thread."""

    def __init__(
        self,
        loop: ExportPort,
        *,
        lease_s: float = LEASE_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        max_leases: int = MAX_LEASES,
        chunk_tokens: int = CHUNK_TOKENS,
        chunk_bytes: int = CHUNK_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop, self._clock = loop, clock
        self._lease_s, self._open_timeout_s, self._max_leases = lease_s, open_timeout_s, max_leases
        self._chunk_tokens, self._chunk_bytes = chunk_tokens, chunk_bytes
        self._leases: dict[int, _Lease] = {}
        self._lock = threading.Lock()
        self._sweeper: threading.Timer | None = None

    @property
    def num_leases(self) -> int:
        return len(self._leases)

    def open(self, encoding_id: EncodingId, epoch: str, transport: Transport = "object_store") -> Granted | Refused:
        """Waits for the engine, and for a copy to host memory if it takes one.

        What cannot be read by `transport` is lent all the same, without a window: chunks of it can be asked for.
        """
        if epoch != (own := self._loop.info.epoch):
            return Refused(f"the worker's epoch is {own}, expected {epoch}")
        if len(self._leases) >= self._max_leases:
            return Refused(f"{len(self._leases)} transfers read from the worker, expected fewer")
        request = ExportRequest(encoding_id)
        self._loop.export(request)
        export = self._wait(request.reply)
        if isinstance(export, Refused):
            return export
        with self._lock:
            self._leases[export.number] = _Lease(export, self._clock() + self._lease_s)
            self._watch()
        chunk_tokens = max(1, min(self._chunk_tokens, self._chunk_bytes // export.bytes_per_token))
        granted = Granted(export.number, export.num_tokens, chunk_tokens, self._lease_s)
        if transport == "object_store":
            return granted
        window = export.window(transport)
        if isinstance(window, Refused):
            logger.warning("%s is sent through the object store: %s", encoding_id, window.why)
            return granted
        return replace(granted, window=window, slots=export.slots)

    def renew(self, lease_id: int) -> Refused | None:
        """Somebody reads memory, or asks another shard for more. None if the lease has held since it was granted;
        then it holds for as long again."""
        with self._lock:
            lease = self._leases.get(lease_id)
            if lease is None:
                return Refused("the lease has ended")
            lease.until_s = self._clock() + self._lease_s
            return None

    def read(self, lease_id: int, begin: int, end: int) -> Chunk | Refused:
        """Tokens [begin, end)."""
        with self._lock:
            lease = self._leases.get(lease_id)
            if lease is None:
                return Refused("the lease has ended")
            lease.num_reading += 1
        try:
            return chunk_from(lease.export, begin, end)
        finally:
            with self._lock:
                lease.num_reading -= 1
                lease.until_s = self._clock() + self._lease_s
                self._end_if_over(lease_id, lease)

    def close(self, lease_id: int) -> None:
        """Unknown ids are ignored."""
        with self._lock:
            lease = self._leases.get(lease_id)
            if lease is not None:
                lease.until_s = float("-inf")
                self._end_if_over(lease_id, lease)

    def sweep(self) -> None:
        """Ends the leases of those who have been silent for too long."""
        with self._lock:
            for lease_id, lease in list(self._leases.items()):
                if self._end_if_over(lease_id, lease):
                    logger.warning("a transfer of %s was given up: nobody asks for more", lease.export.encoding_id)

    def _end_if_over(self, lease_id: int, lease: _Lease) -> bool:
        """Never while it is being read."""
        if lease.num_reading or lease.until_s > self._clock() or self._leases.pop(lease_id, None) is None:
            return False
        self._loop.end_export(lease.export)
        return True

    def _wait(self, reply: Future[Export | Refused]) -> Export | Refused:
        try:
            return reply.result(self._open_timeout_s)
        except TimeoutError:
            # If it was answered just now, the answer counts.
            return Refused("the worker's engine does not answer") if reply.cancel() else reply.result()

    def _watch(self) -> None:
        """Sees to it that `sweep` is called while there are leases."""
        if self._sweeper is None:
            self._sweeper = threading.Timer(self._lease_s / 4, self._sweep_again)
            self._sweeper.daemon = True
            self._sweeper.start()

    def _sweep_again(self) -> None:
        try:
            self.sweep()
        finally:
            with self._lock:
                self._sweeper = None
                if self._leases:
                    self._watch()
