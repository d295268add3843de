"""The journal: what happens is in a database before anybody hears of it.

One thread writes. While a transaction is on its way what comes next gathers, and goes together in the following one. If
the database is away it tries again until it is back: moves wait, and with them the workflows; what is submitted then is
refused.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from laban.actors.errors import Unavailable
from laban.cluster.journal_records import Archive, Deletion, Ending, Line, Submission, Write, archive_to_json
from laban.cluster.journal_store import JournalAway, Store
from laban.cluster.records import JOURNAL_AVAILABLE

logger = logging.getLogger(__name__)

MAX_BATCH = 1000  # writes in a transaction, or a few more
DELAYS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # before each try while the database is away; the last one again and again
STALL_S = 5.0  # a transaction that takes longer counts as the database being away
CLOSE_S = 10.0  # for what is left to be written


@dataclass(frozen=True, slots=True)
class _Item:
    """Something to write, and what to do in the event loop then. With `refuse` it may be given up instead."""

    make: Callable[[], Write]
    then: Callable[[], None] | None = None
    refuse: Callable[[str], None] | None = None


class Journal:
    """Implements `inbox.MoveLog`. Methods are called in the event loop that `start` was called in."""

    def __init__(
        self, store: Store, *, clock: Callable[[], float] = time.time, delays_s: tuple[float, ...] = DELAYS_S
    ) -> None:
        """`store` is open. `clock` is the time of day."""
        self._store = store
        self._clock = clock
        self._delays_s = delays_s
        self._gathered: list[_Item] = []  # in this turn of the event loop
        self._queue: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._away_since: float | None = None
        self._busy_since: float | None = None
        self._closing = threading.Event()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="laban-journal", daemon=True)
        self._thread.start()

    @property
    def unavailable_since(self) -> float | None:
        """When the database was found to be away; None while it is there."""
        busy_since = self._busy_since
        if self._away_since is None and busy_since is not None and self._clock() - busy_since > STALL_S:
            return busy_since
        return self._away_since

    @property
    def status(self) -> str:
        """For people."""
        since = self.unavailable_since
        if since is None:
            return JOURNAL_AVAILABLE
        return f"unavailable since {datetime.fromtimestamp(since, UTC).isoformat(timespec='seconds')}"

    def check(self) -> None:
        """Raises Unavailable while nothing can be written: refuse what somebody else could try again."""
        if self._closing.is_set():
            raise Unavailable("the server is stopping")
        if self.unavailable_since is not None:
            raise Unavailable(f"the journal's database is {self.status}: try again later")

    async def accept(self, submission: Submission, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Write a submission down and call `then`, even if who waits here is cancelled.

        If it cannot be written calls `otherwise` and raises Unavailable; it will never be, then.
        """
        try:
            self.check()
        except Unavailable:
            otherwise()
            raise
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def written() -> None:
            try:
                then()
            except Exception as error:
                if not outcome.done():
                    outcome.set_exception(error)
                raise
            if not outcome.done():
                outcome.set_result(None)

        def refused(reason: str) -> None:
            otherwise()
            if not outcome.done():
                outcome.set_exception(Unavailable(f"the journal's database is away: {reason}"))

        self._put(_Item(lambda: submission, written, refused))
        await outcome

    def append(self, line: Line, then: Callable[[], None]) -> None:
        self._put(_Item(lambda: line, then))

    def end(self, archive: Archive) -> None:
        """Keep what a workflow shows in the place of its moves. Until it is written these say the same."""
        record = archive.record
        finished_at = self._clock() if record.finished_at is None else record.finished_at
        self._put(_Item(lambda: Ending(record.workflow_id, record.state, finished_at, archive_to_json(archive))))

    async def delete(self, workflow_id: str) -> None:
        """Forget a workflow. Raises Unavailable if the database is away."""
        self.check()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def written() -> None:
            if not done.done():
                done.set_result(None)

        self._put(_Item(lambda: Deletion(workflow_id), written))
        await done

    def forget(self, workflow_id: str) -> None:
        """Delete a workflow, some time."""
        self._put(_Item(lambda: Deletion(workflow_id)))

    def refuse(self) -> None:
        """From now on `check` fails; what is on its way is written."""
        self._closing.set()

    async def close(self) -> None:
        """Write what is left, if the database is there, and close it."""
        self._closing.set()
        self._send()
        self._queue.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, CLOSE_S)
        self._store.close()

    def _put(self, item: _Item) -> None:
        """What comes in one turn of the loop goes to the thread together: waking it costs more than what it is told."""
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._send)
        self._gathered.append(item)

    def _send(self) -> None:
        if self._gathered:
            self._queue.put(self._gathered)
            self._gathered = []

    # In the writer's thread

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            self._commit(batch)

    def _take(self) -> list[_Item] | None:
        """Wait for something to write; None: there will be nothing more."""
        first = self._queue.get()
        return None if first is None else self._gather(first)

    def _gather(self, batch: list[_Item]) -> list[_Item]:
        while len(batch) < MAX_BATCH:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._queue.put(None)
                break
            batch = batch + more
        return batch

    def _commit(self, batch: list[_Item]) -> None:
        self._busy_since = self._clock()
        num_failures = 0
        while True:
            batch, writes = _made(batch)
            try:
                self._store.write(writes)
                break
            except JournalAway as error:
                self._fail(str(error))
                batch = self._refused(self._gather(batch), str(error))
                delay_s = self._delays_s[min(num_failures, len(self._delays_s) - 1)]
                num_failures += 1
                if self._closing.wait(delay_s) and num_failures > len(self._delays_s):
                    logger.error("the journal is closed with %d writes left; nobody was told of them", len(batch))
                    return
        if self._away_since is not None:
            logger.warning("the journal's database is back")
        self._away_since = self._busy_since = None
        self._tell([item.then for item in batch if item.then is not None])

    def _fail(self, reason: str) -> None:
        if self._away_since is None:
            self._away_since = self._clock()
            logger.error("the journal's database is away, workflows wait: %s", reason)

    def _refused(self, batch: list[_Item], reason: str) -> list[_Item]:
        """Give up what may be. It may be there all the same, if only the answer was lost: so it is deleted later."""
        left: list[_Item] = []
        told: list[Callable[[], None]] = []
        for item in batch:
            if item.refuse is None:
                left.append(item)
                continue
            write, refuse = item.make(), item.refuse
            told.append(lambda refuse=refuse: refuse(reason))  # type: ignore[misc]
            left.append(_Item(lambda gone=write.workflow_id: Deletion(gone)))  # type: ignore[misc]
        self._tell(told)
        return left

    def _tell(self, actions: list[Callable[[], None]]) -> None:
        assert self._loop is not None
        if actions and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_do_all, actions)


def _made(batch: list[_Item]) -> tuple[list[_Item], list[Write]]:
    """What there is to write. What cannot be put into words is left out: it can be done without."""
    items: list[_Item] = []
    writes: list[Write] = []
    for item in batch:
        try:
            write = item.make()
        except Exception:
            logger.exception("something cannot be written to the journal")
            continue
        items.append(_Item(lambda write=write: write, item.then, item.refuse))  # type: ignore[misc]
        writes.append(write)
    return items, writes


def _do_all(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        try:
            action()
        except Exception:  # one workflow's mistake is none of the others'
            logger.exception("what follows a write to the journal failed")
