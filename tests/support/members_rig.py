"""Several executors that share a journal, each with a worker of its own. They can be killed and paused at any write."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from executor_rig import until
from journal_rig import Server

from laban.actors.errors import LabanError
from laban.cluster.callers import Caller
from laban.cluster.journal_engine import JournalAway
from laban.cluster.journal_members import Presence
from laban.cluster.journal_store import SqlStore
from laban.cluster.membership import Membership
from laban.cluster.records import TERMINAL_WORKFLOW, Event
from laban.cluster.tokens import Quota

LEASE_S = 10.0


class Book:
    """Who may call. A token is its tenant's name."""

    def refresh(self) -> bool:
        return False

    def find(self, token: str) -> Caller | None:
        return None if token == "stranger" else Caller(token, token, frozenset(["submit"]))

    def quota(self, tenant: str) -> Quota:
        return Quota()


class Clock:
    """The database's, for leases."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FrailStore(SqlStore):
    """Before its write number `strike_at` it does what `strike` says: nothing, stop until it is woken, or die. With
    `after` it does so once that is written, and before anybody hears of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.num_writes = 0
        self.strike_at: int | None = None
        self.strike = ""
        self.after = False
        self.is_dead = False
        self.is_paused = False
        self._turn = threading.Lock()
        self._awake = threading.Event()
        self._awake.set()

    def pause(self) -> None:
        """From here on: a transaction under way, which may renew the lease, is over first."""
        with self._turn:
            self.is_paused = True
            self._awake.clear()

    def wake(self) -> None:
        self.is_paused = False
        self._awake.set()

    def die(self) -> None:
        """As a process does: its locks are free, its row is still there."""
        self.is_dead = True
        if self._locks is not None:
            self._locks.release()
        self._awake.set()

    def write(self, writes: Any) -> Any:
        self.num_writes += 1
        is_due = self.num_writes == self.strike_at
        if is_due and not self.after:
            self._struck()
        written = super().write(writes)
        if is_due and self.after:
            self._struck()
            if self.is_dead:
                raise JournalAway("it is dead")
        return written

    def close(self) -> None:
        if not self.is_dead:
            super().close()

    def _struck(self) -> None:
        if self.strike == "kill":
            self.die()
        elif self.strike == "pause":
            self.pause()

    def _do(self, work: Any, *, is_member: bool = True) -> Any:
        while True:
            self._awake.wait()
            with self._turn:
                if not self._awake.is_set():
                    continue
                if self.is_dead:
                    raise JournalAway("it is dead")
                return super()._do(work, is_member=is_member)


class Cell(Server):
    """A Laban among several. Its rounds follow each other at once."""

    def __init__(self, url: str, clock: Callable[[], float], name: str, **options: Any) -> None:
        super().__init__(FrailStore(url, presence=Presence("here", name), lease_s=LEASE_S, clock=clock), **options)
        self.name = name
        self.membership = Membership(self.store, self.journal, self.executor, max_finished=1000)
        self.num_rounds = 0
        self._rounds: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return not (self.store.is_dead or self.store.is_paused)

    async def start(self) -> None:
        await asyncio.to_thread(self.store.open)
        self.executor.start()
        await self.membership.start(self.name, self.dispatcher.info.namespace)
        self._rounds = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Idempotent."""
        self.store.wake()
        rounds, self._rounds = self._rounds, None
        if rounds is not None:
            rounds.cancel()
            with suppress(asyncio.CancelledError):
                await rounds
            await super().stop()

    async def kill(self) -> None:
        self.store.die()
        await self.stop()

    async def _run(self) -> None:
        while True:
            await self.membership.round()
            self.num_rounds += 1
            await asyncio.sleep(0.002)


class Cells:
    """`seen` are the events of a workflow, by number, whoever showed them."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.url = url or f"sqlite:///{folder / 'journal.db'}"
        self.clock = Clock()
        self.all: list[Cell] = []
        self.seen: dict[int, Event] = {}

    async def add(self, **options: Any) -> Cell:
        made = Cell(self.url, self.clock, f"cell-{len(self.all)}", **options)
        self.all.append(made)
        await made.start()
        return made

    async def stop(self) -> None:
        for cell in self.all:
            await cell.stop()

    @property
    def up(self) -> list[Cell]:
        return [cell for cell in self.all if cell.is_up]

    async def pass_time(self, seconds: float) -> None:
        """In steps, so that those who are up renew their leases."""
        while seconds > 0:
            self.clock.now_s += LEASE_S / 4
            seconds -= LEASE_S / 4
            rounds = [(cell, cell.num_rounds) for cell in self.up]
            await until(lambda rounds=rounds: all(cell.num_rounds > n + 1 or not cell.is_up for cell, n in rounds))

    def with_it(self, workflow_id: str) -> list[Cell]:
        return [cell for cell in self.all if workflow_id in cell.executor.shelf]

    async def follow(self, cell: Cell, workflow_id: str) -> None:
        """Watch it at one of them, for as long as that has it."""
        last = 0
        with suppress(LabanError):
            async for item in cell.executor.watch(workflow_id):
                if isinstance(item, Event):
                    last += 1
                    assert item.number == last
                    assert self.seen.setdefault(last, item) == item, "an event was there before, and was another"

    async def follow_all(self, workflow_id: str) -> None:
        """To the end."""
        watches: list[asyncio.Task[None]] = []
        watched: set[tuple[str, int]] = set()
        async with asyncio.timeout(60):
            while not (self.seen and self.seen[max(self.seen)].workflow_state in TERMINAL_WORKFLOW):
                for cell in self.with_it(workflow_id):
                    which = (cell.name, cell.executor.intake.life)
                    if which not in watched:
                        watched.add(which)
                        watches.append(asyncio.create_task(self.follow(cell, workflow_id)))
                for watch in watches:
                    if watch.done():
                        watch.result()
                await asyncio.sleep(0.002)
        for watch in watches:
            watch.cancel()
        for result in await asyncio.gather(*watches, return_exceptions=True):
            if isinstance(result, AssertionError):
                raise result


@asynccontextmanager
async def cells(folder: Path, num: int = 2, url: str | None = None, **options: Any) -> AsyncIterator[Cells]:
    made = Cells(folder, url)
    try:
        for _ in range(num):
            await made.add(**options)
        yield made
    finally:
        await made.stop()
