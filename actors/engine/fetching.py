"""The receiving side of transfers: encodings come from other workers into host memory, range by range.

Read out of the other worker's memory where that can be done, else sent through Ray's object store.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from laban.actors.calls import Source
from laban.actors.engine.direct import DirectMemory, Reader
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.landing import Landing, Problem, ReadLanding, RunsOf, SentLanding, Write
from laban.actors.reach import Transport, transport_between
from laban.actors.transfers import FindPeer, Granted, NoBuffer, PeerLost, PeerPort, Refused, TransportFailed
from laban.kvstore.arrivals import Arrival

logger = logging.getLogger(__name__)

MAX_TRANSFERS = 2
"""At once: one copies while the other waits for its source."""
RANGES_ASKED = 3
"""Of a transfer, on their way at once."""
MOST_READERS = 4
"""Threads that read other workers' memory: one alone does not reach what memory can do."""

LOST_S = 10.0
"""For so long a worker that did not answer is not asked again: every transfer would wait in vain, one after another."""


class Fetching:
    """Implements Fetcher, in threads of its own."""

    def __init__(
        self,
        find_peer: FindPeer,
        pool: HostPool,
        direct: DirectMemory,
        *,
        max_transfers: int = MAX_TRANSFERS,
        ranges_asked: int = RANGES_ASKED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find_peer, self._pool, self._direct, self._clock = find_peer, pool, direct, clock
        self._threads = ThreadPoolExecutor(max_transfers, "transfers")
        num_readers = min(MOST_READERS, max(1, (os.cpu_count() or 1) // 4))
        self._read_threads = ThreadPoolExecutor(num_readers, "reads")
        self._ranges_asked = max(ranges_asked, num_readers + 1)
        self._readers: dict[str, tuple[str, Reader]] = {}  # by worker: in which life, and how it is read
        self._failed: set[tuple[str, str, Transport]] = set()  # of which worker's life
        self._lost: dict[tuple[str, str], float] = {}  # workers' lives, and until when they are taken for lost
        self._lock = threading.Lock()

    def fetch(self, source: Source, num_tokens: int, write: Write, runs: RunsOf) -> Arrival:
        arrival = Arrival(num_tokens, self._clock)
        arrival.link = arrival.via = "object_store"
        self._threads.submit(self._fetch, source, arrival, write, runs)
        return arrival

    def close(self) -> None:
        """What is under way has been cancelled, and is not waited for, but nothing is read into the pool any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._read_threads.shutdown(cancel_futures=True)
        self._readers.clear()

    def _fetch(self, source: Source, arrival: Arrival, write: Write, runs: RunsOf) -> None:
        problem: Problem = "the transfer failed"
        try:
            arrival.begin()
            problem = self._bring(source, arrival, write, runs)
        except PeerLost as error:
            problem = f"worker {source.worker_id} is lost: {error}"
            self._readers.pop(source.worker_id, None)
            self._lost[source.worker_id, source.epoch] = self._clock() + LOST_S
        except Exception as error:
            if not arrival.cancelled:
                logger.exception("a transfer of %s from worker %s failed", source.encoding_id, source.worker_id)
            problem = f"{type(error).__name__}: {error}"
        finally:
            arrival.end(problem)

    def _bring(self, source: Source, arrival: Arrival, write: Write, runs: RunsOf) -> Problem:
        if arrival.cancelled:
            return "cancelled"
        if self._clock() < self._lost.get((source.worker_id, source.epoch), 0.0):
            return f"worker {source.worker_id} did not answer a moment ago"
        peer = self._find_peer(source.worker_id, source.epoch)
        if peer is None:
            return f"worker {source.worker_id} is not known in epoch {source.epoch}"
        arrival.link = arrival.via = transport = transport_between(self._direct.reach, peer.reach)
        if (source.worker_id, source.epoch, transport) in self._failed:
            arrival.via = transport = "object_store"
        asked_s = self._clock()
        granted = peer.open(source.encoding_id, transport)
        arrival.answered()
        if isinstance(granted, Refused):
            return f"worker {source.worker_id} refused: {granted.why}"
        try:
            problem = None
            if transport != "object_store":
                problem = self._read(peer, granted, source, arrival, runs, transport, asked_s)
            if arrival.via == "object_store" and problem is None:
                sent = SentLanding(peer, granted, source.encoding_id, write, self._pool.k.dtype)
                problem = self._land(sent, granted, arrival)
        finally:
            peer.close(granted.lease_id)
        if problem is not None:
            return f"from worker {source.worker_id}: {problem}"
        if arrival.num_tokens_done < arrival.num_tokens:
            return f"worker {source.worker_id} has {granted.num_tokens} of {arrival.num_tokens} tokens"
        return None

    def _read(
        self,
        peer: PeerPort,
        granted: Granted,
        source: Source,
        arrival: Arrival,
        runs: RunsOf,
        transport: Transport,
        asked_s: float,
    ) -> Problem:
        """As far as its memory can be read; then `arrival.via` says that the rest has to be sent."""
        try:
            if granted.window is None:
                raise TransportFailed("it does not open its memory")
            reader = self._reader(source, granted, arrival)
            landing = ReadLanding(
                peer, granted, reader, runs, self._pool.bytes_per_token, self._read_threads, asked_s, self._clock
            )
            return self._land(landing, granted, arrival)
        except TransportFailed as error:
            logger.warning(
                "worker %s cannot be read by %s, so it sends through the object store: %s",
                source.worker_id, transport, error,
            )  # fmt: skip
            if not isinstance(error, NoBuffer):
                self._failed.add((source.worker_id, source.epoch, transport))
            arrival.via = "object_store"
            return None

    def _reader(self, source: Source, granted: Granted, arrival: Arrival) -> Reader:
        assert granted.window is not None
        with self._lock:
            epoch, reader = self._readers.get(source.worker_id, ("", None))
            if reader is None or epoch != source.epoch:
                reader = self._direct.reader(granted.window)
                self._readers[source.worker_id] = source.epoch, reader
                arrival.begin()  # what is done once is not counted
            return reader

    def _land(self, landing: Landing, granted: Granted, arrival: Arrival) -> Problem:
        stop, step = min(granted.num_tokens, arrival.num_tokens), granted.chunk_tokens
        ranges = deque((begin, min(begin + step, stop)) for begin in range(arrival.num_tokens_done, stop, step))
        asked: deque[tuple[int, Callable[[], tuple[Problem, int]]]] = deque()
        try:
            while ranges or asked:
                while ranges and len(asked) < self._ranges_asked:
                    begin, end = ranges.popleft()
                    asked.append((end, landing.ask(begin, end)))
                end, landed = asked.popleft()
                problem, num_bytes = landed()
                if problem is not None or arrival.cancelled:
                    return problem or "cancelled"
                arrival.advance(end, num_bytes)
                if (problem := landing.keep()) is not None:
                    return problem
            return None
        finally:
            landing.finish()
