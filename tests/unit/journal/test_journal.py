"""The thread that writes the journal: what waits behind a transaction that fails is told in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import pytest
from executor_workflows import asynchronous

from laban.actors.errors import Unavailable
from laban.cluster import journal as journals
from laban.cluster.journal import MAX_BATCH, Journal
from laban.cluster.journal_engine import JournalAway
from laban.cluster.journal_records import Deletion, Line, Submission, Write
from laban.cluster.journal_store import Taken


class LockedStore:
    """A database that somebody else has locked: what comes waits for the lock (`busy`), in vain while it is `away`."""

    member_id = "me"

    def __init__(self) -> None:
        self.away = True
        self.busy = threading.Event()
        self.began = threading.Event()
        self.writes: list[Write] = []

    def write(self, writes: Sequence[Write]) -> Mapping[str, Taken]:
        self.wait()
        self.writes += writes
        return {}

    def wait(self) -> str:
        self.began.set()
        self.busy.wait()
        if self.away:
            raise JournalAway("database is locked")
        return "done"

    def close(self) -> None:
        pass


def submission(name: str) -> Submission:
    return Submission(name, 1, "", None, "digest", "model/", 2000, 1, 1700000000.0, "{}")


async def submit(journal: Journal, name: str) -> str:
    await journal.accept(submission(name), lambda: None, lambda: None)
    return name


async def in_turn(journal: Journal, kinds: str) -> list[asyncio.Task[str]]:
    """Submissions (s) and jobs (j), each a turn of the loop after the one before."""
    tasks = []
    for number, kind in enumerate(kinds):
        work = submit(journal, f"w{number}") if kind == "s" else journal.do(journal._store.wait)  # type: ignore[attr-defined]
        tasks.append(asyncio.ensure_future(work))
        await asyncio.sleep(0.01)
    return tasks


@pytest.mark.parametrize("kinds", ["sjs", "jsjs", "ssjsjjs", "js"])
@asynchronous
async def test_what_waits_behind_a_failed_transaction_is_refused_whatever_lies_between(kinds: str) -> None:
    store = LockedStore()
    journal = Journal(store, delays_s=(0.01,))
    journal.start()
    tasks = await in_turn(journal, kinds)
    assert not any(task.done() for task in tasks)
    store.busy.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5.0)
    assert [type(each) for each in outcomes] == [Unavailable if kind == "s" else JournalAway for kind in kinds]
    assert "database is locked" in str(outcomes[-1])
    store.away = False
    while journal.unavailable_since is not None:
        await asyncio.sleep(0.01)
    assert await asyncio.gather(submit(journal, "later"), journal.do(store.wait)) == ["later", "done"]
    await journal.close()
    # Of what was refused nothing is left, and nothing of it is written later.
    assert [each.workflow_id for each in store.writes if isinstance(each, Submission)] == ["later"]


@asynchronous
async def test_moves_wait_in_their_order_while_jobs_between_them_are_refused() -> None:
    store = LockedStore()
    journal = Journal(store, delays_s=(0.01,))
    journal.start()
    applied: list[int] = []
    jobs = []
    for number in range(MAX_BATCH + 20):
        journal.append(Line("w", number, 0.0, 0, 0, "{}"), lambda number=number: applied.append(number))  # type: ignore[misc]
        if number % 400 == 0:
            jobs.append(asyncio.ensure_future(journal.do(store.wait)))
            await asyncio.sleep(0.01)
    refused = asyncio.ensure_future(submit(journal, "refused"))
    await asyncio.sleep(0.01)
    store.busy.set()
    await asyncio.wait_for(asyncio.wait([refused, *jobs]), 5.0)
    assert isinstance(refused.exception(), Unavailable)
    assert applied == []
    store.away = False
    while len(applied) < MAX_BATCH + 20:
        await asyncio.sleep(0.01)
    await journal.close()
    lines = [each.number for each in store.writes if isinstance(each, Line)]
    assert applied == lines == list(range(MAX_BATCH + 20))
    assert [each.workflow_id for each in store.writes if isinstance(each, Deletion)] == ["refused"]


@asynchronous
async def test_a_job_that_takes_too_long_counts_as_the_database_being_away() -> None:
    now = 100.0
    store = LockedStore()
    store.away = False
    journal = Journal(store, clock=lambda: now)
    journal.start()
    job = asyncio.ensure_future(journal.do(store.wait))
    await asyncio.to_thread(store.began.wait)
    journal.check()
    now += 6.0
    with pytest.raises(Unavailable, match="try again later"):
        journal.check()
    store.busy.set()
    assert await job == "done"
    journal.check()
    await journal.close()


@asynchronous
async def test_who_stops_does_not_wait_for_a_database_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it take the connection from the thread that has it."""
    monkeypatch.setattr(journals, "CLOSE_S", 0.05)
    store, closed = LockedStore(), threading.Event()
    monkeypatch.setattr(store, "close", closed.set)
    journal = Journal(store)
    journal.start()
    journal.forget("w")
    await asyncio.to_thread(store.began.wait)
    await asyncio.wait_for(journal.close(), 5.0)
    assert not closed.is_set()
    store.away = False
    store.busy.set()
