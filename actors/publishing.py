"""A worker's word to the directory: what became of its encodings, in numbered batches for each shard.

`Publisher` decides what to say; `Publishing` says it, from a thread of its own, so the engine's never waits.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from laban.actors.lasting import lasting
from laban.actors.ports import DirectoryPort
from laban.kvstore.directory_messages import Answer, Batch, Epoch, PackedChange
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import TIER_SHIFT, PlacementChange, pack, shard_of

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
STALE_S = 30.0
"""How often a worker speaks up whose life the directory takes to be over."""
INTERVAL_S = 0.05
RETRY_S = 1.0
TIMEOUT_S = 10.0


@dataclass(slots=True)
class _Shard:
    number: int = 0  # of the last batch made
    # What the worker holds of this shard's encodings: namespace, then packed placements. Small, and no work for the
    # garbage collector.
    held: dict[EncodingId, tuple[str | int, ...]] = field(default_factory=dict)
    pending: dict[tuple[EncodingId, int], PackedChange] = field(default_factory=dict)  # by encoding and tier
    snapshot_due: bool = False  # and nothing need be pending until it is made
    stale: bool = False
    sent_s: float = float("-inf")


class Publisher:
    """Pure. `put` may be called by any thread, the rest by one. Memory is bounded by what the worker holds."""

    def __init__(self, worker_id: str, epoch: Epoch, num_shards: int, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._worker_id, self._epoch, self._heartbeat_s = worker_id, epoch, heartbeat_s
        self._arrived: deque[Sequence[PlacementChange]] = deque()
        self._shards = [_Shard() for _ in range(num_shards)]

    def put(self, changes: Sequence[PlacementChange]) -> None:
        self._arrived.append(changes)

    def take(self, shard: int, now_s: float) -> Batch | None:
        """What to say to the shard now: changes, a snapshot or a heartbeat. None if there is nothing to be said."""
        self._sort()
        to = self._shards[shard]
        if not to.stale and to.snapshot_due:
            # What is pending is in it. It has a number of its own, so if it is lost the next heartbeat is a gap.
            kind: Literal["snapshot", "changes"] = "snapshot"
            changes = _entries(to)
            to.snapshot_due = False
        elif not to.stale and to.pending:
            kind, changes = "changes", tuple(to.pending.values())
        elif now_s >= self.due_s(shard):
            to.sent_s = now_s
            return Batch(self._worker_id, self._epoch, to.number, "heartbeat")
        else:
            return None
        to.pending.clear()
        to.number += 1
        to.sent_s = now_s
        return Batch(self._worker_id, self._epoch, to.number, kind, changes)

    def answered(self, shard: int, answer: Answer) -> None:
        to = self._shards[shard]
        to.stale = answer is Answer.STALE
        if answer is not Answer.TAKEN:
            to.snapshot_due = True
            to.pending.clear()

    def failed(self, shard: int, now_s: float) -> None:
        """Nobody knows whether the last batch arrived. A heartbeat will tell: if it did not, its number is a gap."""
        to = self._shards[shard]
        to.sent_s = now_s - self._heartbeat_s
        if len(to.pending) > len(to.held):
            to.snapshot_due = True  # it is less to keep
            to.pending.clear()

    def due_s(self, shard: int) -> float:
        """When the next heartbeat is, should nothing change until then."""
        to = self._shards[shard]
        return to.sent_s + (STALE_S if to.stale else self._heartbeat_s)

    @property
    def num_held(self) -> int:
        return sum(len(shard.held) for shard in self._shards)

    def _sort(self) -> None:
        """What arrived, to its shards. Of several changes of one encoding and tier the last one counts."""
        while self._arrived:
            for encoding_id, tier, state, num_tokens, namespace in self._arrived.popleft():
                to = self._shards[shard_of(encoding_id, len(self._shards))]
                packed = pack(tier, state, num_tokens)
                known, *placements = to.held.get(encoding_id, ("",))
                placements = [each for each in placements if int(each) >> TIER_SHIFT != tier]
                if state:
                    placements.append(packed)
                if placements:
                    to.held[encoding_id] = (namespace or known, *placements)
                else:
                    to.held.pop(encoding_id, None)
                if not to.snapshot_due:
                    to.pending[encoding_id, tier] = (encoding_id, packed, namespace)


class Publishing:
    """A thread with an event loop in it that says what a Publisher has to say. Survives a directory that is down."""

    def __init__(
        self,
        port: DirectoryPort,
        worker_id: str,
        *,
        interval_s: float = INTERVAL_S,
        heartbeat_s: float = HEARTBEAT_S,
        retry_s: float = RETRY_S,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A shard gets a batch at most every `interval_s`, and none while it has not answered the last one."""
        self._port, self._worker_id, self._clock = port, worker_id, clock
        self._interval_s, self._heartbeat_s = interval_s, heartbeat_s
        self._retry_s, self._timeout_s = retry_s, timeout_s
        self._registered: Future[Epoch] = Future()
        self._publisher: Publisher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._changed: list[asyncio.Event] = []
        self._signalled = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="publishing", daemon=True)
        self._thread.start()

    def epoch(self) -> Epoch:
        """What the directory calls this life of the worker. Waits for it. Raises CancelledError after `stop`, and what
        kept the directory from saying it, but for its being down."""
        return self._registered.result()

    def put(self, changes: Sequence[PlacementChange]) -> None:
        """From any thread, once there is an epoch. Does not wait, raises nothing."""
        if not changes or self._publisher is None or self._loop is None:
            return
        self._publisher.put(changes)
        if not self._signalled:
            self._signalled = True
            with suppress(RuntimeError):  # it has been stopped
                self._loop.call_soon_threadsafe(self._wake)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Say no more. Idempotent."""
        self._stopped = True
        self._registered.cancel()
        if self._loop is not None and self._main is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                asyncio.run(self._publish_all())
        except Exception as error:  # before it has begun to publish: who waits for the epoch is told
            logger.exception("the directory did not register the worker")
            with suppress(InvalidStateError):
                self._registered.set_exception(error)

    async def _publish_all(self) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        if self._stopped:  # before there was anything to cancel
            return
        num_shards = self._port.num_shards
        self._changed = [asyncio.Event() for _ in range(num_shards)]
        epoch = await self._register()
        self._publisher = Publisher(self._worker_id, epoch, num_shards, heartbeat_s=self._heartbeat_s)
        try:
            self._registered.set_result(epoch)
        except InvalidStateError:
            return  # stopped meanwhile
        shards = (
            lasting(f"publishing to shard {shard}", partial(self._publish, self._publisher, shard), self._retry_s)
            for shard in range(num_shards)
        )
        await asyncio.gather(*shards)

    async def _register(self) -> Epoch:
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._port.register(self._worker_id)
            except (ConnectionError, TimeoutError) as error:
                logger.warning(
                    "the directory does not register the worker, trying again: %s", str(error) or "no answer"
                )
                await asyncio.sleep(self._retry_s)

    async def _publish(self, publisher: Publisher, shard: int) -> None:
        changed, down = self._changed[shard], False
        while True:
            changed.clear()
            batch = publisher.take(shard, self._clock())
            if batch is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(publisher.due_s(shard) - self._clock(), 0.0)):
                        await changed.wait()
                continue
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._port.publish(shard, batch)
            except Exception as error:
                publisher.failed(shard, self._clock())
                if not isinstance(error, ConnectionError | TimeoutError):
                    raise
                if not down:
                    logger.warning("shard %d of the directory is down: %s", shard, str(error) or "no answer")
                down = True
                await asyncio.sleep(self._retry_s)
                continue
            if down:
                logger.info("shard %d of the directory is back", shard)
            down = False
            publisher.answered(shard, answer)
            await asyncio.sleep(self._interval_s)

    def _wake(self) -> None:
        self._signalled = False
        for changed in self._changed:
            changed.set()


def _entries(shard: _Shard) -> tuple[PackedChange, ...]:
    return tuple(
        (encoding_id, int(packed), str(namespace))
        for encoding_id, (namespace, *placements) in shard.held.items()
        for packed in placements
    )
