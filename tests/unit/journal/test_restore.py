"""Workflows go on where they were, whenever their process was killed and whatever the database did."""

from __future__ import annotations

import asyncio
from typing import Any

from executor_rig import until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_checks import SEED, assert_sound, essence, finished, has_races, quickened, tools_of
from journal_rig import MemoryStore, server
from random_workflows import workflows

from laban.actors.errors import LabanError, Unavailable
from laban.cluster.journal_records import Ending, Line
from laban.cluster.moves import CallEnded, move_from_json
from laban.cluster.workflow.diagnostics import WorkflowErrors

relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@relaxed
@given(workflows().map(quickened), st.data())
def test_whatever_was_written_when_it_was_killed_it_ends_alike(data: dict[str, Any], draw: st.DataObject) -> None:
    tools = tools_of(data)

    async def check() -> None:
        async with server(MemoryStore()) as first:
            try:
                workflow_id = (await first.submit(data)).workflow_id
            except (WorkflowErrors, LabanError):
                return
            record, events = await finished(first, workflow_id, tools)
            await until(lambda: isinstance(first.store.writes[-1], Ending))
        writes = first.store.writes
        assert_sound(events)
        for _ in range(3):  # killed, and killed again
            writes = writes[: draw.draw(st.integers(1, len(writes)), label="written")]
            async with server(MemoryStore(writes)) as again:
                known = again.shown(workflow_id)
                assert known == events[: len(known)]
                then, events = await finished(again, workflow_id, tools)
                await until(lambda: isinstance(again.store.writes[-1], Ending))
                assert events[: len(known)] == known
                assert_sound(events)
                assert then.created_at == record.created_at
                if not has_races(data):
                    assert essence(then) == essence(record)
            writes = again.store.writes

    asyncio.run(check())


@relaxed
@given(workflows().map(quickened), st.lists(st.sampled_from(["", "", "before", "after"]), min_size=1, max_size=40))
def test_a_database_that_fails_at_any_write_loses_and_doubles_nothing(data: dict[str, Any], faults: list[str]) -> None:
    tools = tools_of(data)

    async def check() -> None:
        async with server(MemoryStore()) as calm:
            try:
                expected, _ = await finished(calm, (await calm.submit(data, overrides=SEED)).workflow_id, tools)
            except (WorkflowErrors, LabanError):
                return
        left = list(faults)
        async with server(MemoryStore(fault=lambda: left.pop() if left else "")) as run:
            while True:
                try:
                    workflow_id = (await run.submit(data, idempotency_key="once", overrides=SEED)).workflow_id
                    break
                except Unavailable:
                    await asyncio.sleep(0.001)
            record, events = await finished(run, workflow_id, tools)
            assert_sound(events)
            if not has_races(data):
                assert essence(record) == essence(expected)
            lines = [
                write for write in run.store.writes if isinstance(write, Line) and write.workflow_id == workflow_id
            ]
            assert [line.number for line in lines] == list(range(1, 1 + len(lines)))
            moves = [move_from_json(line.move) for line in lines]
            ended = [(move.address, move.attempt) for move in moves if isinstance(move, CallEnded)]
            assert len(ended) == len(set(ended))
            assert len(run.executor.list()[0]) == 1

    asyncio.run(check())
