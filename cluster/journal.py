"""The journal: what happens is in a database before anybody hears of it.

One thread writes. While a transaction is on its way what comes next gathers, and goes together in the following one. If
the database is away it tries again until it is back: moves wait, and with them the workflows; what is submitted then is
refused. If others took this member for dead, they have its workflows: nothing more of these is written (`on_lost`).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from laban.actors.errors import LabanError, Unavailable
from laban.actors.lasting import going_on
from laban.cluster.claims import KeyTaken
from laban.cluster.journal_engine import Fenced, JournalAway, JournalLost, Unfit
from laban.cluster.journal_records import Archive, Deletion, Ending, Line, Submission, Write, archive_to_json
from laban.cluster.journal_store import Store
from laban.cluster.records import JOURNAL_AVAILABLE

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BATCH = 1000  # writes in a transaction, or a few more
DELAYS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # before each try while the database is away; the last one again and again
STALL_S = 5.0  # a transaction that takes longer counts as the database being away
CLOSE_S = 10.0  # for what is left to be written
LOST = "others took this Laban for dead, and have taken its workflows over: try again"


@dataclass(frozen=True, slots=True)
class _Item:
    """Something to write, and what to do in the event loop then. With `refuse` it may be given up instead: somebody
    waits, and can try again. `life` counts how often this process has been a member before."""

    life: int
    make: Callable[[], Write]
    then: Callable[[], None] | None = None
    refuse: Callable[[LabanError], None] | None = None
    may_wait: bool = False  # while the database is away


@dataclass(frozen=True, slots=True)
class _Job:
    """Something else for the thread that has the connection."""

    work: Callable[[], Any]
    done: Callable[[Any, Exception | None], None]


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
        self._queue: queue.SimpleQueue[list[_Item] | _Job | None] = queue.SimpleQueue()
        self._behind: deque[list[_Item] | _Job | None] = deque()  # out of the queue, and next in turn
        self._life = 0
        self._lost_life = -1  # what was put down in it is not written any more
        self.on_lost: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._away_since: float | None = None
        self.lost = ""  # what somebody has to see to, while the database is away for that
        self._busy_since: float | None = None
        self._closing = threading.Event()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="laban-journal", daemon=True)
        self._thread.start()

    @property
    def member_id(self) -> str:
        """Under which it writes."""
        return self._store.member_id

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
        at = f"unavailable since {datetime.fromtimestamp(since, UTC).isoformat(timespec='seconds')}"
        return f"{at}: {self.lost}" if self.lost else at

    def check(self) -> None:
        """Raises Unavailable while nothing can be written: refuse what somebody else could try again."""
        if self._closing.is_set():
            raise Unavailable("the server is stopping")
        if self._lost_life == self._life:
            raise Unavailable(LOST)
        if self.unavailable_since is not None:
            raise Unavailable(f"the journal's database is {self.status}: try again later")

    async def accept(self, submission: Submission, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Write a submission down and call `then`, even if who waits here is cancelled.

        If it cannot be written calls `otherwise` and raises Unavailable, or Unfit; it will never be, then. Raises
        KeyTaken if its idempotency key is another workflow's.
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

        def refused(error: LabanError) -> None:
            otherwise()
            if not outcome.done():
                outcome.set_exception(error)

        self._put(_Item(self._life, lambda: submission, written, refused))
        await outcome

    def append(self, line: Line, then: Callable[[], None]) -> None:
        self._put(_Item(self._life, lambda: line, then))

    def end(self, archive: Archive) -> None:
        """Keep what a workflow shows in the place of its moves. Until it is written these say the same."""
        record = archive.record
        finished_at = self._clock() if record.finished_at is None else record.finished_at
        self._put(
            _Item(self._life, lambda: Ending(record.workflow_id, record.state, finished_at, archive_to_json(archive)))
        )

    async def delete(self, workflow_id: str) -> None:
        """Forget a workflow. Raises Unavailable if the database is away."""
        self.check()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def written() -> None:
            if not done.done():
                done.set_result(None)

        def refused(error: LabanError) -> None:
            if not done.done():
                done.set_exception(error)

        self._put(_Item(self._life, lambda: Deletion(workflow_id), written, refused, may_wait=True))
        await done

    def forget(self, workflow_id: str) -> None:
        """Delete a workflow, some time."""
        self._put(_Item(self._life, lambda: Deletion(workflow_id)))

    async def do(self, work: Callable[[], T]) -> T:
        """Have something done by the thread that writes, behind what is to be written. Raises JournalAway, Fenced,
        and what the work raises."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T, error: Exception | None) -> None:
            if outcome.done():
                return
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)

        self._send()
        self._queue.put(_Job(work, done))
        return await outcome

    def live_again(self) -> None:
        """This process is another member now: what comes from now on is written under its name."""
        self._life += 1

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
            if self._thread.is_alive():  # it has the connection, and an answer may be long in coming
                logger.error("the journal's database does not answer: it is left as it is")
                return
        await asyncio.to_thread(self._store.close)

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
        while (found := self._take()) is not None:
            with going_on("writing to the journal"):
                if isinstance(found, _Job):
                    self._do(found)
                else:
                    self._commit(found)

    def _take(self) -> list[_Item] | _Job | None:
        """Wait for something to do; None: there will be nothing more."""
        found = self._behind.popleft() if self._behind else self._queue.get()
        return self._gather(found) if isinstance(found, list) else found

    def _gather(self, batch: list[_Item]) -> list[_Item]:
        """With what has come meanwhile, as far as the next job: that has its turn."""
        while len(batch) < MAX_BATCH:
            if not self._behind:
                try:
                    self._behind.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            more = self._behind[0]
            if not isinstance(more, list):
                break
            batch = batch + more
            self._behind.popleft()
        return batch

    def _do(self, job: _Job) -> None:
        """Whether the database is there is known from this too."""
        self._busy_since = self._clock()
        result: Any = None
        failure: Exception | None = None
        try:
            result = job.work()
            self._found()
        except Fenced as error:
            failure = error
            self._lose()
        except JournalAway as error:
            failure = error
            self._fail(error)
            self._refuse_behind(str(error))
        except Exception as error:  # the job's own, told to who asked for it
            failure = error
        self._busy_since = None
        self._tell([lambda: job.done(result, failure)])

    def _commit(self, batch: list[_Item]) -> None:
        self._busy_since = self._clock()
        num_failures = 0
        while True:
            batch, writes = _made(self._still_ours(batch))
            if not writes:
                self._busy_since = None
                return
            try:
                taken = self._store.write(writes)
                break
            except Fenced:
                self._lose()
            except Unfit as error:
                self._found()
                if len(batch) == 1:
                    self._give_up(batch[0], writes[0], error)
                else:  # one of them is to blame
                    for item in batch:
                        self._commit([item])
                return
            except JournalAway as error:
                self._fail(error)
                batch = self._refused(batch, str(error))
                self._refuse_behind(str(error))
                delay_s = self._delays_s[min(num_failures, len(self._delays_s) - 1)]
                num_failures += 1
                if self._closing.wait(delay_s) and num_failures > len(self._delays_s):
                    logger.error("the journal is closed with %d writes left; nobody was told of them", len(batch))
                    return
        self._found()
        told: list[Callable[[], None]] = []
        for item, write in zip(batch, writes, strict=True):
            other = taken.get(write.workflow_id) if isinstance(write, Submission) else None
            if other is not None and item.refuse is not None:
                told.append(partial(item.refuse, KeyTaken(other.workflow_id, other.content)))
            elif item.then is not None:
                told.append(item.then)
        self._tell(told)

    def _fail(self, error: JournalAway) -> None:
        lost = str(error) if isinstance(error, JournalLost) else ""
        if self._away_since is None or lost != self.lost:
            logger.error("the journal's database is away, workflows wait: %s", error)
        self._away_since, self.lost = self._away_since or self._clock(), lost

    def _found(self) -> None:
        if self._away_since is not None:
            logger.warning("the journal's database is back")
        self._away_since = self._busy_since = None
        self.lost = ""

    def _lose(self) -> None:
        if self._lost_life < self._life:
            self._lost_life = self._life
            logger.error("this Laban was silent for too long: others took its workflows over")
            self._tell([lambda: self.on_lost()])

    def _give_up(self, item: _Item, write: Write, error: Unfit) -> None:
        """It cannot be written, now or later. Who asked for it is told; without anybody it is as if it had been:
        nothing hangs, and the workflow cannot be restored."""
        logger.error("a %s of workflow %s cannot be written: %s", type(write).__name__, write.workflow_id, error)
        then = item.then if item.refuse is None else partial(item.refuse, error)
        self._tell([] if then is None else [then])

    def _still_ours(self, batch: list[_Item]) -> list[_Item]:
        """Without what was put down before this member was taken for dead: others have it."""
        left = [item for item in batch if item.life > self._lost_life]
        if len(left) < len(batch):
            lost = [item.refuse for item in batch if item.life <= self._lost_life and item.refuse is not None]
            self._tell([partial(refuse, Unavailable(LOST)) for refuse in lost])
        return left

    def _refused(self, batch: list[_Item], reason: str) -> list[_Item]:
        """Give up what may be. It may be there all the same, if only the answer was lost: so it is deleted later."""
        left: list[_Item] = []
        told: list[Callable[[], None]] = []
        for item in batch:
            if item.refuse is None or item.may_wait:
                left.append(item)
                continue
            told.append(partial(item.refuse, Unavailable(f"the journal's database is away: {reason}")))
            left.append(_Item(item.life, partial(Deletion, item.make().workflow_id)))
        self._tell(told)
        return left

    def _refuse_behind(self, reason: str) -> None:
        """Of what waits for its turn, give up what may be, and all jobs: who asked for one asks again."""
        with suppress(queue.Empty):
            while True:
                self._behind.append(self._queue.get_nowait())
        waiting, self._behind = self._behind, deque()
        for each in waiting:
            if isinstance(each, _Job):
                self._tell([partial(each.done, None, JournalAway(reason))])
            else:
                self._behind.append(None if each is None else self._refused(each, reason))

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
        items.append(replace(item, make=partial(_same, write)))
        writes.append(write)
    return items, writes


def _same(write: Write) -> Write:
    return write


def _do_all(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        try:
            action()
        except Exception:  # one workflow's mistake is none of the others'
            logger.exception("what follows a write to the journal failed")
