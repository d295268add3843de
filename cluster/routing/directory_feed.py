"""Keeps a DirectoryView up to date: tells the directory's shards what it watches, and brings their news."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4

from laban.actors.lasting import lasting
from laban.actors.ports import DirectoryPort
from laban.cluster.routing.directory_view import DirectoryView
from laban.cluster.routing.told_uses import ToldUses
from laban.kvstore.directory_messages import Epoch, Watch
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import shard_of
from laban.kvstore.uses import Use

logger = logging.getLogger(__name__)

INTERVAL_S = 0.05
WAIT_S = 10.0
RETRY_S = 1.0
TICK_S = 1.0
TIMEOUT_S = 10.0
"""For an answer, and of a poll beyond its wait: a shard that hangs, though its process lives, is as good as down."""


@dataclass(slots=True)
class _Shard:
    told: ToldUses
    number: int = 0  # of the last watch sent
    taken: int = 0  # the last news
    known: bool = False  # whether the shard knows this subscriber, as far as is known here
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    speaking: asyncio.Lock = field(default_factory=asyncio.Lock)  # one watch at a time, in order


class DirectoryFeed:
    """One poll at a time is open at each shard; it waits there. Nothing here waits for an answer to decide anything."""

    def __init__(
        self,
        port: DirectoryPort,
        view: DirectoryView,
        *,
        subscriber: str | None = None,
        interval_s: float = INTERVAL_S,
        wait_s: float = WAIT_S,
        retry_s: float = RETRY_S,
        tick_s: float = TICK_S,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A shard is told of what is watched at most every `interval_s`, of uses and pins every `tick_s`."""
        self._port, self._view = port, view
        self._subscriber = subscriber or f"router-{uuid4().hex[:12]}"
        self._interval_s, self._wait_s, self._retry_s, self._tick_s = interval_s, wait_s, retry_s, tick_s
        self._timeout_s, self._clock = timeout_s, clock
        self._shards = [_Shard(ToldUses(self._subscriber)) for _ in range(port.num_shards)]
        view.watching.on_interest = self._wake

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lasting("the directory view's tick", self._tick, self._retry_s))
            for shard in range(len(self._shards)):
                tasks.create_task(self._listen(shard))
                for what, work in (("watching", self._speak), ("telling of uses", self._tell)):
                    name = f"{what} at shard {shard} of the directory"
                    tasks.create_task(lasting(name, partial(work, shard), self._retry_s))

    def note(self, uses: Iterable[tuple[EncodingId, Use | None]], pins: Iterable[tuple[EncodingId, float]]) -> None:
        """What workers are told is to come: the directory learns of it, too, a little later."""
        now_s, num_shards = self._clock(), len(self._shards)
        for use in uses:
            self._shards[shard_of(use[0], num_shards)].told.put([use], (), now_s)
        for pin in pins:
            self._shards[shard_of(pin[0], num_shards)].told.put((), [pin], now_s)

    async def drop(self, worker_id: str, epoch: Epoch) -> None:
        """Tell the directory that the worker died. What is not told it finds out by itself, when no heartbeat comes."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._port.drop(worker_id, epoch)
        except (ConnectionError, TimeoutError) as error:
            logger.info("the directory was not told that worker %s died: %s", worker_id, _reason(error))

    async def _listen(self, number: int) -> None:
        shard, down = self._shards[number], False
        while True:
            try:
                if not shard.known:
                    await self._watch(number)
                async with asyncio.timeout(self._wait_s + self._timeout_s):
                    news = await self._port.poll(number, self._subscriber, shard.taken, self._wait_s)
                self._view.see(number, news is not None)
                if news is None:
                    shard.known = False
                else:
                    shard.taken = news.number
                    self._view.take(number, news)
            except Exception as error:
                if not isinstance(error, ConnectionError | TimeoutError):
                    logger.exception("taking news of shard %d of the directory failed", number)
                    shard.taken = -1  # so all of it is told again
                elif not down:
                    logger.warning("shard %d of the directory is down: %s", number, _reason(error))
                down = True
                self._view.see(number, False)
                await asyncio.sleep(self._retry_s)
                continue
            if down:
                logger.info("shard %d of the directory is back", number)
            down = False
            if news:
                await asyncio.sleep(self._interval_s)

    async def _speak(self, number: int) -> None:
        shard = self._shards[number]
        while True:
            await shard.changed.wait()
            shard.changed.clear()
            try:
                await self._watch(number)
                await asyncio.sleep(self._interval_s)
            except (ConnectionError, TimeoutError):
                await asyncio.sleep(self._retry_s)
            finally:
                if not shard.known:
                    shard.changed.set()

    async def _watch(self, number: int) -> None:
        """Say what came and went; to a shard that does not know this subscriber, everything."""
        shard = self._shards[number]
        async with shard.speaking:
            anew = not shard.known
            watching = self._view.watching
            added, removed = (watching.all_of(number), ()) if anew else watching.take(number)
            if anew or added or removed:
                shard.number += 1
                shard.known = False  # until it says so: whether it took that nobody knows
                async with asyncio.timeout(self._timeout_s):
                    shard.known = await self._port.watch(
                        number, Watch(self._subscriber, shard.number, added, removed, anew)
                    )
                if anew:
                    shard.told.repeat()

    async def _tell(self, number: int) -> None:
        shard = self._shards[number]
        while True:
            await asyncio.sleep(self._tick_s)
            shard.told.expire(self._clock())
            if not shard.known:
                continue  # it would not take it
            interest = shard.told.take(self._clock())
            if interest is not None:
                try:
                    async with asyncio.timeout(self._timeout_s):
                        await self._port.tell(number, interest)
                except Exception as error:
                    shard.told.repeat()
                    if not isinstance(error, ConnectionError | TimeoutError):
                        raise

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            self._view.tick()

    def _wake(self) -> None:
        for shard in self._shards:
            shard.changed.set()


def _reason(error: Exception) -> str:
    return str(error) or "no answer"
