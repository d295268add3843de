"""A shard of the directory as a service in an event loop: batches of workers in, news for subscribers out.

Plain; `remote` gives it a process. Losing it loses nothing: it comes back empty, asks every worker for a snapshot,
and tells every subscriber to watch anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from laban.actors.lasting import lasting
from laban.kvstore.directory import IDLE_S, LATE_S, DirectoryShard
from laban.kvstore.directory_messages import Answer, Batch, EncodingRecord, Epoch, Interest, News, ShardStatus, Watch
from laban.kvstore.encodings import EncodingId

TICK_S = 1.0
SWEPT_AT_ONCE = 10_000
GATHER_S = 0.02
"""News wait so long for others to come with them."""
SETTLE_S = 2.5
"""Two heartbeats and some: how long a shard that came back says nothing, so that every worker has spoken by then."""


class DirectoryService:
    """Methods are called in one event loop; only `poll` waits."""

    def __init__(
        self,
        *,
        restarted: bool = False,
        late_s: float = LATE_S,
        idle_s: float = IDLE_S,
        settle_s: float = SETTLE_S,
        gather_s: float = GATHER_S,
        tick_s: float = TICK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`restarted`: there was a shard in its place, and subscribers that know more than this one."""
        self._clock, self._gather_s, self._tick_s = clock, gather_s, tick_s
        quiet_until_s = clock() + settle_s if restarted else clock()
        self._shard = DirectoryShard(late_s=late_s, idle_s=idle_s, quiet_until_s=quiet_until_s)
        # The open poll of each subscriber: what it took last, and what ends its waiting, be it news or a later poll.
        self._polls: dict[str, tuple[int, asyncio.Event]] = {}
        self._ticker: asyncio.Task[None] | None = None

    async def register(self, worker_id: str) -> Epoch:
        """Issue the epoch of a new life of the worker. One shard issues for all."""
        epoch = self._shard.register(worker_id, self._clock(), time.time_ns() // 1000)
        self._wake()
        return epoch

    async def publish(self, batch: Batch) -> Answer:
        answer = self._shard.publish(batch, self._clock())
        self._wake()
        return answer

    async def drop(self, worker_id: str, epoch: Epoch) -> None:
        self._shard.drop(worker_id, epoch, self._clock())
        self._wake()

    async def watch(self, watch: Watch) -> bool:
        """False if a message before it is missing: one that is `anew` must come next."""
        taken = self._shard.watch(watch, self._clock())
        self._wake()
        return taken

    async def poll(self, subscriber: str, taken: int, wait_s: float) -> News | None:
        """News after number `taken`, as soon as there are any; none after `wait_s`, or when the subscriber polls again.

        None for a subscriber that is unknown: it has to watch anew.
        """
        mine = taken, asyncio.Event()
        if subscriber in self._polls:
            self._polls[subscriber][1].set()
        self._polls[subscriber] = mine
        self._wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await mine[1].wait()
            await asyncio.sleep(self._gather_s)
        if self._polls.get(subscriber) is not mine:
            return News(taken)
        del self._polls[subscriber]
        return self._shard.take_news(subscriber, taken, self._clock())

    async def tell(self, interest: Interest) -> None:
        self._shard.tell(interest, self._clock())

    async def find(self, encoding_ids: Sequence[EncodingId]) -> tuple[EncodingRecord, ...]:
        now_s = self._clock()
        return tuple(self._shard.find(encoding_id, now_s) for encoding_id in encoding_ids)

    async def status(self) -> ShardStatus:
        return self._shard.status()

    def _wake(self) -> None:
        if self._ticker is None:
            ticking = lasting("the directory's tick", self._tick, self._tick_s)
            self._ticker = asyncio.get_running_loop().create_task(ticking)
        now_s = self._clock()
        for subscriber, (taken, woken) in self._polls.items():
            if self._shard.has_news(subscriber, taken, now_s):
                woken.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            self._shard.tick(self._clock())
            self._wake()
            while self._shard.sweep(SWEPT_AT_ONCE):
                await asyncio.sleep(0)  # others have their turn
