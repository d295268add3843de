"""The receiving side of transfers: encodings come from other workers into host memory, chunk by chunk."""

from __future__ import annotations

import logging
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from laban.actors.calls import Source
from laban.actors.engine.disk_folder import rows_of
from laban.actors.transfers import Chunk, FindPeer, Granted, PeerLost, PeerPort, Refused, checksum_of
from laban.kvstore.arrivals import Arrival

logger = logging.getLogger(__name__)

# Chunks lie in shared memory that is only to be read; and they are only read.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

MAX_TRANSFERS = 2
"""At once: one copies while the other waits for its source."""
CHUNKS_ASKED = 3
"""Of a transfer, on their way at once."""

Write = Callable[[int, int, Tensor], None]


class Fetching:
    """Implements Fetcher, in threads of its own."""

    def __init__(
        self,
        find_peer: FindPeer,
        dtype: torch.dtype,
        *,
        max_transfers: int = MAX_TRANSFERS,
        chunks_asked: int = CHUNKS_ASKED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find_peer, self._dtype, self._chunks_asked, self._clock = find_peer, dtype, chunks_asked, clock
        self._threads = ThreadPoolExecutor(max_transfers, "transfers")

    def fetch(self, source: Source, num_tokens: int, write: Write) -> Arrival:
        arrival = Arrival(num_tokens, self._clock)
        self._threads.submit(self._fetch, source, arrival, write)
        return arrival

    def close(self) -> None:
        """What is under way has been cancelled, and is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, source: Source, arrival: Arrival, write: Write) -> None:
        problem: str | None = "the transfer failed"
        try:
            arrival.begin()
            problem = self._bring(source, arrival, write)
        except PeerLost as error:
            problem = f"worker {source.worker_id} is lost: {error}"
        except Exception as error:
            logger.exception("a transfer of %s from worker %s failed", source.encoding_id, source.worker_id)
            problem = f"{type(error).__name__}: {error}"
        finally:
            arrival.end(problem)

    def _bring(self, source: Source, arrival: Arrival, write: Write) -> str | None:
        """Returns the problem."""
        if arrival.cancelled:
            return "cancelled"
        peer = self._find_peer(source.worker_id, source.epoch)
        if peer is None:
            return f"worker {source.worker_id} is not known in epoch {source.epoch}"
        granted = peer.open(source.encoding_id)
        if isinstance(granted, Refused):
            return f"worker {source.worker_id} refused: {granted.why}"
        try:
            problem = self._copy(peer, granted, source, arrival, write)
        finally:
            peer.close(granted.lease_id)
        if problem is None and arrival.num_tokens_done < arrival.num_tokens:
            return f"worker {source.worker_id} has {granted.num_tokens} of {arrival.num_tokens} tokens"
        return problem

    def _copy(self, peer: PeerPort, granted: Granted, source: Source, arrival: Arrival, write: Write) -> str | None:
        stop, step = min(granted.num_tokens, arrival.num_tokens), granted.chunk_tokens
        parts = deque((begin, min(begin + step, stop)) for begin in range(0, stop, step))
        asked: deque[tuple[int, int, Callable[[], Chunk | Refused]]] = deque()
        while parts or asked:
            while parts and len(asked) < self._chunks_asked:
                begin, end = parts.popleft()
                asked.append((begin, end, peer.ask(granted.lease_id, begin, end)))
            begin, end, take = asked.popleft()
            chunk = take()
            if arrival.cancelled:
                return "cancelled"
            if isinstance(chunk, Refused):
                return f"worker {source.worker_id} refused: {chunk.why}"
            if checksum_of(source.encoding_id, begin, chunk.rows) != chunk.checksum:
                return f"tokens from {begin} on are damaged: their checksum is wrong"
            write(begin, end, rows_of(chunk.rows, self._dtype))
            arrival.advance(end, chunk.rows.nbytes)
        return None
