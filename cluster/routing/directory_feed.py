"""Keeps a DirectoryView up to date: tells the directory's shards what it watches, and brings their news."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from uuid import uuid4

from laban.actors.ports import DirectoryPort
from laban.cluster.routing.directory_view import DirectoryView
from laban.kvstore.directory_messages import Epoch, Watch

logger = logging.getLogger(__name__)

INTERVAL_S = 0.05
WAIT_S = 10.0
RETRY_S = 1.0
TICK_S = 1.0


@dataclass(slots=True)
class _Shard:
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
    ) -> None:
        """A shard is told of what is watched at most every `interval_s`."""
        self._port, self._view = port, view
        self._subscriber = subscriber or f"router-{uuid4().hex[:12]}"
        self._interval_s, self._wait_s, self._retry_s = interval_s, wait_s, retry_s
        self._shards = [_Shard() for _ in range(port.num_shards)]
        view.on_interest = self._wake

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick())
            for shard in range(len(self._shards)):
                tasks.create_task(self._listen(shard))
                tasks.create_task(self._speak(shard))

    async def drop(self, worker_id: str, epoch: Epoch) -> None:
        """Tell the directory that the worker died. What is not told it finds out by itself, when no heartbeat comes."""
        try:
            await self._port.drop(worker_id, epoch)
        except ConnectionError as error:
            logger.info("the directory was not told that worker %s died: %s", worker_id, error)

    async def _listen(self, number: int) -> None:
        shard, down = self._shards[number], False
        while True:
            try:
                if not shard.known:
                    await self._watch(number)
                news = await self._port.poll(number, self._subscriber, shard.taken, self._wait_s)
            except ConnectionError as error:
                if not down:
                    logger.warning("shard %d of the directory is down: %s", number, error)
                down = True
                await asyncio.sleep(self._retry_s)
                continue
            if down:
                logger.info("shard %d of the directory is back", number)
            down = False
            if news is None:
                shard.known = False
                continue
            shard.taken = news.number
            if news:
                self._view.take(number, news)
                await asyncio.sleep(self._interval_s)

    async def _speak(self, number: int) -> None:
        shard = self._shards[number]
        while True:
            await shard.changed.wait()
            shard.changed.clear()
            try:
                await self._watch(number)
                await asyncio.sleep(self._interval_s)
            except ConnectionError:
                shard.known = False  # whether it took that nobody knows
                await asyncio.sleep(self._retry_s)
            if not shard.known:
                shard.changed.set()

    async def _watch(self, number: int) -> None:
        """Say what came and went; to a shard that does not know this subscriber, everything."""
        shard = self._shards[number]
        async with shard.speaking:
            anew = not shard.known
            added, removed = (self._view.watched(number), ()) if anew else self._view.take_interest(number)
            if anew or added or removed:
                shard.number += 1
                shard.known = await self._port.watch(
                    number, Watch(self._subscriber, shard.number, added, removed, anew)
                )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._view.tick()

    def _wake(self) -> None:
        for shard in self._shards:
            shard.changed.set()
