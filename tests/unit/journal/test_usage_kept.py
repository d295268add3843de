"""What attempts came to outlives the process; what was written before that was counted still loads."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from executor_rig import until
from flaky_calls import Flaky, assert_accounted, wild
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_rig import MemoryStore, server

from laban.cluster.journal_records import Ending, Line, archive_from_json
from laban.cluster.journal_store import SqlStore
from laban.cluster.moves import CallEnded, CallLost, move_from_json
from laban.cluster.records import TERMINAL_WORKFLOW, WorkflowRecord
from laban.cluster.usage import NO_USAGE

relaxed = settings(max_examples=20, deadline=None)


def ended(lines: tuple[Line, ...]) -> set[tuple[str, int]]:
    """The attempts, by address and number, of which the end was written down."""
    moves = [move_from_json(line.move) for line in lines]
    return {(move.address, move.attempt) for move in moves if isinstance(move, CallEnded | CallLost)}


async def run_cut_off(flaky: Flaky, open_store: Callable[[], Any], cuts: list[int]) -> WorkflowRecord:
    """A workflow whose process ends after so many reports of its worker each, as it is shown after one restart more."""
    workflow_id = ""
    for more in [*cuts, 10**6]:
        store = open_store()
        for stored in store.load():
            if not stored.archive:  # what was not written down of calls has gone with the process
                known = ended(stored.lines)
                flaky.told = {attempt: events for attempt, events in flaky.told.items() if attempt in known}
        async with server(store) as run:
            if not workflow_id:
                workflow_id = (await run.executor.intake.submit(wild(), {})).workflow_id
            at = flaky.num_reports + more
            await until(lambda at=at, run=run: flaky.num_reports >= at or not run.executor.shelf.active())
            record = run.executor.get(workflow_id)
        if record.state in TERMINAL_WORKFLOW:
            break
    assert_accounted(record, flaky)
    async with server(open_store()) as again:
        assert again.executor.get(workflow_id) == record
    return record


@relaxed
@given(st.integers(0, 2**32), st.lists(st.integers(1, 80), max_size=3))
def test_usage_outlives_the_process_whenever_it_ended(salt: int, cuts: list[int]) -> None:
    store = MemoryStore()
    with Flaky(salt).in_force() as flaky:
        asyncio.run(run_cut_off(flaky, lambda: store, cuts))


def test_usage_is_in_the_database(tmp_path: Path) -> None:
    salt = random.randrange(2**32)
    print(f"salt {salt}")

    def opened() -> SqlStore:
        store = SqlStore(f"sqlite:///{tmp_path / 'journal.db'}")
        store.open()
        return store

    with Flaky(salt, unfit=0.9).in_force() as flaky:
        record = asyncio.run(run_cut_off(flaky, opened, [60, 60]))
    assert any(step.earlier_attempts.tokens_generated for step in record.steps)


def test_what_was_written_before_usage_was_counted_loads() -> None:
    """One that has ended has none. One that goes on has what calls that ended were written with."""
    store = MemoryStore()
    with Flaky(1, failing=0.5, unfit=0.5).in_force() as flaky:
        record = asyncio.run(run_cut_off(flaky, lambda: store, []))
        writes = [older(write) for write in store.writes]
        assert writes != store.writes
        [archive] = [archive_from_json(write.archive) for write in writes if isinstance(write, Ending)]
        assert {step.address: step for step in archive.board().steps.values()} == {
            step.address: replace(step, earlier_attempts=NO_USAGE) for step in record.steps
        }
        going_on = MemoryStore([write for write in writes if not isinstance(write, Ending)])

        async def replay() -> WorkflowRecord:
            async with server(going_on) as again:
                return again.executor.get(record.workflow_id)

        replayed = asyncio.run(replay())
    assert [step.attempt for step in replayed.steps] == [step.attempt for step in record.steps]
    for then, now in zip(record.steps, replayed.steps, strict=True):
        assert now.total.tokens_generated <= then.total.tokens_generated
        assert now.total.tokens_read <= then.total.tokens_read
    assert any(step.earlier_attempts.tokens_read for step in replayed.steps)


def older(write: Any) -> Any:
    """As the version before wrote it."""
    if isinstance(write, Line):
        move = json.loads(write.move)
        move.pop("usage", None)
        return replace(write, move=json.dumps(move))
    if isinstance(write, Ending):
        archive = json.loads(write.archive)
        for event in archive[0]["events"]:
            if event["result"] is not None:
                del event["result"]["earlier_attempts"]
        return replace(write, archive=json.dumps(archive))
    return write
