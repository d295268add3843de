"""What a journal means to those who submit, watch and answer: before, during and after a restart."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from executor_rig import until
from executor_workflows import CHAIN, DEBATE, asynchronous, tool_step
from journal_checks import SLOW
from journal_rig import MemoryStore, server

from laban.actors.errors import Conflict, Exhausted, FailedPrecondition, NotFound, Unavailable
from laban.cluster.execution import Execution
from laban.cluster.journal_records import Ending, Submission
from laban.cluster.traces import Traces
from laban.cluster.workflow.parse import parse_yaml

CHAIN_OF = CHAIN.replace("question: {type: string}", "question: {default: why}")
# A worker's pool has 16,000 bytes, a token one; each of these calls may make 1,500.
WIDE = """
version: 1
name: wide
messages: {task: "What?"}
sampling: {max_tokens: 1500}
steps:
  - {step: part, for_each: 6, read: [task]}
  - {step: wrap, read: [{read: part, end: 3}]}
"""


@asynchronous
async def test_what_has_ended_is_shown_as_before_after_a_restart():
    async with server(MemoryStore()) as first:
        ids = [(await first.submit(text)).workflow_id for text in (DEBATE, CHAIN_OF)]
        items = [await first.events(workflow_id) for workflow_id in ids]
        before = [first.executor.get(workflow_id) for workflow_id in ids]
        page = first.executor.list()
        await until(lambda: sum(isinstance(write, Ending) for write in first.store.writes) == 2)
    async with server(first.store) as again:
        assert [again.executor.get(workflow_id) for workflow_id in ids] == before
        assert [await again.events(workflow_id) for workflow_id in ids] == items
        assert await again.events(ids[0], after=7) == items[0][7:]
        assert again.executor.list() == page
        third = await again.submit(CHAIN_OF)
        assert [record.workflow_id for record in again.executor.list()[0]] == [third.workflow_id, ids[1], ids[0]]
        await again.events(third.workflow_id)
        assert again.worker.engine.calls[0].call_id.startswith(third.workflow_id)  # nothing ran again


@asynchronous
async def test_a_step_that_was_cut_off_runs_again_as_a_new_attempt_and_watchers_are_told():
    async with server(MemoryStore()) as calm:
        expected = await calm.events((await calm.submit(SLOW)).workflow_id)
    async with server(MemoryStore()) as first:
        workflow_id = (await first.submit(SLOW)).workflow_id
        await until(lambda: first.executor.get(workflow_id).steps[1].state == "running")
        known = first.shown(workflow_id)
    async with server(first.store) as again:
        events = await again.events(workflow_id, after=len(known))
        ready = events[0]
        assert (ready.number, ready.address, ready.step_state, ready.attempt) == (len(known) + 1, "b", "ready", 2)
        assert [event.number for event in events] == list(range(len(known) + 1, len(known) + 1 + len(events)))
        results = {event.result.address: event.result.text for event in (*known, *events) if event.result}
        assert results == {event.result.address: event.result.text for event in expected if event.result}
        assert [call.call_id.split("/")[1] for call in again.worker.engine.calls] == ["b#2", "c#1"]


@asynchronous
async def test_an_idempotency_key_outlives_the_process():
    async with server(MemoryStore()) as first:
        workflow_id = (await first.submit(DEBATE, idempotency_key="k")).workflow_id
        twice = await asyncio.gather(*(first.submit(CHAIN_OF, idempotency_key="l") for _ in range(3)))
        assert len({record.workflow_id for record in twice}) == 1
        await first.events(workflow_id)
    async with server(first.store) as again:
        assert (await again.submit(DEBATE, idempotency_key="k")).workflow_id == workflow_id
        with pytest.raises(Conflict, match="used before, with other content"):
            await again.submit(CHAIN_OF, idempotency_key="k")
        assert sum(isinstance(write, Submission) for write in again.store.writes) == 2


@asynchronous
async def test_a_mistake_as_a_workflow_enters_leaves_nobody_with_its_key_waiting():
    class Broken(Traces):
        def follow(self, board, origin, *, restored=False):
            board.feed.on_event = lambda event: 1 / 0
            raise RuntimeError("tracing is broken")

    async with server(MemoryStore(), traces=Broken(), ahead=True) as run:
        record = await run.submit(CHAIN_OF, idempotency_key="traced")
        assert (await run.events(record.workflow_id))[-1].workflow_state == "succeeded"
        enter, run.executor.intake._lookout.enter = run.executor.intake._lookout.enter, lambda *_: 1 / 0
        asked = [asyncio.ensure_future(run.submit(CHAIN_OF, idempotency_key="k")) for _ in range(3)]
        outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5.0)
        assert sum(isinstance(each, ZeroDivisionError) for each in outcomes) == 1
        run.executor.intake._lookout.enter = enter


@asynchronous
async def test_while_the_database_is_away_submits_are_refused_and_workflows_wait():
    away = False
    async with server(MemoryStore(fault=lambda: "before" if away else "")) as run:
        assert run.journal.status == "available"
        workflow_id = (await run.submit(DEBATE)).workflow_id
        away = True
        with pytest.raises(Unavailable, match="the journal's database is"):
            await run.submit(CHAIN_OF, idempotency_key="k")
        assert run.journal.status.startswith("unavailable since 20")
        assert run.executor.status().journal.startswith("unavailable since 20")
        for change in (
            run.submit(CHAIN_OF),
            run.executor.cancel(workflow_id),
            run.executor.lease_step(["t"], wait_s=0),
        ):
            with pytest.raises(Unavailable, match="try again later"):
                await change
        seen = len(run.shown(workflow_id))
        await asyncio.sleep(0.05)
        assert len(run.shown(workflow_id)) == seen
        away = False
        assert (await run.events(workflow_id))[-1].workflow_state == "succeeded"
        await until(lambda: run.journal.unavailable_since is None)
        assert run.executor.status().journal == "available"
        record = await run.submit(CHAIN_OF, idempotency_key="k")  # what was refused has left nothing behind
        assert [each.workflow_id for each in run.executor.list()[0]] == [record.workflow_id, workflow_id]
    async with server(run.store) as again:
        assert [each.workflow_id for each in again.executor.list()[0]] == [record.workflow_id, workflow_id]


@asynchronous
async def test_a_leased_step_is_offered_again_and_its_answers_count_once():
    async with server(MemoryStore()) as first:
        workflow_id = (await first.submit(tool_step(more="retries: 1"))).workflow_id
        lease = await first.executor.lease_step(["run_tests"], handler="hal")
        await first.executor.fail_step(workflow_id, "tests", "broken", lease_id=lease.lease_id)
        second = await first.executor.lease_step(["run_tests"], handler="hal")
    async with server(first.store) as again:
        with pytest.raises(FailedPrecondition):
            await again.executor.renew_lease(second.lease_id)
        with pytest.raises(FailedPrecondition):
            await again.executor.complete_step(workflow_id, "tests", "late", lease_id=second.lease_id)
        third = await again.executor.lease_step(["run_tests"], handler="ida")
        assert (third.attempt, third.messages) == (second.attempt + 1, second.messages)
        await again.executor.fail_step(workflow_id, "tests", "broken", lease_id=lease.lease_id)  # known already
        await again.executor.complete_step(workflow_id, "tests", "fine", lease_id=third.lease_id)
        assert (await again.events(workflow_id))[-1].workflow_state == "succeeded"
        await until(lambda: isinstance(again.store.writes[-1], Ending))
    async with server(again.store) as last:
        await last.executor.complete_step(workflow_id, "tests", "fine", lease_id=third.lease_id)
        with pytest.raises(Conflict):
            await last.executor.complete_step(workflow_id, "tests", "other", lease_id=third.lease_id)
        step = last.executor.get(workflow_id).steps[0]
        assert (step.text, step.worker, step.attempt) == ("fine", "ida", 3)


@asynchronous
async def test_an_unanswered_step_waits_on_and_a_cancelled_workflow_stays_cancelled():
    async with server(MemoryStore()) as first:
        waits, cancelled = [(await first.submit(tool_step())).workflow_id for _ in range(2)]
        await first.executor.cancel(cancelled)
    async with server(first.store) as again:
        assert again.executor.get(cancelled).state == "cancelled"
        assert again.executor.get(waits).steps[0].state == "ready"
        await again.executor.complete_step(waits, "tests", "by hand")
        assert (await again.events(waits))[-1].workflow_state == "succeeded"


@asynchronous
async def test_workflows_of_another_model_wait_for_it():
    async with server(MemoryStore()) as first:
        workflow_id = (await first.submit(tool_step(), idempotency_key="k")).workflow_id
    async with server(first.store, namespace="other") as other:
        with pytest.raises(NotFound):
            other.executor.get(workflow_id)
        with pytest.raises(FailedPrecondition, match="cannot go on with"):
            await other.submit(tool_step(), idempotency_key="k")
        assert other.executor.list()[0] == []
    async with server(other.store) as again:
        assert again.executor.get(workflow_id).state == "running"


def changed(document: dict[str, object], name: str, *rest: str, to: object = None) -> None:
    """Without the named part, or with something else in its place."""
    if rest:
        changed(document[name], *rest, to=to)
    elif to is None:
        del document[name]
    else:
        document[name] = to


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda it: changed(it, "workflow"), "the document has no workflow"),
        (lambda it: changed(it, "workflow", to=["steps"]), "mapping"),
        (lambda it: changed(it, "inputs"), "the document has no inputs"),
        (lambda it: changed(it, "overrides"), "the document has no overrides"),
        (lambda it: changed(it, "overrides", to="exact"), "overrides has no fidelity"),
        (lambda it: changed(it, "overrides", "seed"), "overrides has no seed"),
        (lambda it: changed(it, "overrides", "set"), "overrides has no set"),
        (lambda it: changed(it, "overrides", "set", to=[["draft"]]), "overrides.set is no list"),
        (lambda it: changed(it, "overrides", "set", to=7), "overrides.set is no list"),
        (lambda it: it.update(notes=[{"of": "a later version"}]), "its notes are others"),
        (lambda it: it.update(notes=7), "not iterable"),
        (None, "the document has no workflow"),
    ],
)
@asynchronous
async def test_an_odd_row_stops_its_own_workflow_and_nothing_else(odd, message, caplog):
    async with server(MemoryStore()) as first:
        broken, waits = [(await first.submit(tool_step())).workflow_id for _ in range(2)]
    for number, write in enumerate(first.store.writes):
        if isinstance(write, Submission) and write.workflow_id == broken:
            document = json.loads(write.document)
            if odd is None:
                document = [document]
            else:
                odd(document)
            first.store.writes[number] = replace(write, document=json.dumps(document), idempotency_key="k" * 1000)
    async with server(first.store) as again:
        assert [*again.executor.intake.unreadable] == [broken]
        assert message in again.executor.intake.unreadable[broken]
        assert f"workflow {broken} cannot be restored: " in caplog.text
        await again.executor.complete_step(waits, "tests", "by hand")
        assert (await again.events(waits))[-1].workflow_state == "succeeded"


@asynchronous
async def test_an_odd_archive_hides_its_own_workflow_and_nothing_else(caplog):
    async with server(MemoryStore()) as first:
        broken, waits = [(await first.submit(text)).workflow_id for text in (CHAIN_OF, tool_step())]
        await first.events(broken)
        await until(lambda: any(isinstance(write, Ending) for write in first.store.writes))
    first.store.writes = [
        replace(write, archive='[{"record": 7}]') if isinstance(write, Ending) else write
        for write in first.store.writes
    ]
    async with server(first.store) as again:
        assert f"workflow {broken} cannot be shown: " in caplog.text
        assert again.executor.get(waits).state == "running"


@asynchronous
async def test_what_a_limit_forgets_leaves_the_journal_too():
    async with server(MemoryStore(), max_finished=2) as run:
        ids = [(await run.submit(CHAIN_OF)).workflow_id for _ in range(4)]
        for workflow_id in ids[2:]:
            await run.events(workflow_id)
        await until(lambda: len(run.executor.shelf.ended) == 2)
    kept = {each.workflow_id for each in run.executor.shelf}
    assert {each.submission.workflow_id for each in run.store.load()} == kept
    async with server(run.store, max_age_s=0.0) as again:
        assert again.executor.list()[0] == []
    assert run.store.load() == []


@asynchronous
async def test_what_is_deleted_is_nowhere():
    async with server(MemoryStore()) as run:
        waits = (await run.submit(tool_step(), idempotency_key="k")).workflow_id
        done = (await run.submit(CHAIN_OF)).workflow_id
        await run.events(done)
        for workflow_id in (waits, done):
            await run.executor.delete(workflow_id)
            with pytest.raises(NotFound):
                run.executor.get(workflow_id)
        assert run.store.load() == []
        assert (await run.submit(tool_step(), idempotency_key="k")).workflow_id != waits


@asynchronous
async def test_a_workflow_that_is_looked_ahead_goes_on():
    async with server(MemoryStore(), ahead=True) as first:
        workflow_id = (await first.submit(SLOW)).workflow_id
        await until(lambda: first.executor.get(workflow_id).steps[1].state == "running")
    async with server(first.store, ahead=True) as again:
        assert (await again.events(workflow_id))[-1].workflow_state == "succeeded"


@asynchronous
async def test_a_workflow_that_is_held_back_is_held_back_again():
    async with server(MemoryStore(), ahead=True) as first:
        first.worker.paused = True
        runs, held = [(await first.submit(WIDE)).workflow_id for _ in range(2)]
        await until(lambda: first.executor.get(held).held)
        known = first.shown(held)
    async with server(first.store, ahead=True) as again:
        assert again.shown(held)[: len(known)] == known
        assert again.executor.get(held).held
        events = await again.events(held)
        states = [(each.workflow_state, bool(each.held)) for each in events if each.kind == "workflow_state"]
        assert states == [("running", True), ("running", False), ("succeeded", False)]
        assert (await again.events(runs))[-1].workflow_state == "succeeded"
        calls = [call.call_id.partition("/")[0] for call in again.worker.engine.calls]
        assert calls == sorted(calls, key=[runs, held].index)


@asynchronous
async def test_who_leaves_while_it_is_written_leaves_a_workflow_that_runs():
    async with server(MemoryStore()) as run:
        submitting = asyncio.create_task(run.executor.intake.submit(parse_yaml(CHAIN_OF), {}))
        await until(lambda: (run.executor.intake._admitting and not run.journal._queue.empty()) or run.store.writes)
        submitting.cancel()
        await until(lambda: run.executor.list()[0])
        assert (await run.events(run.executor.list()[0][0].workflow_id))[-1].workflow_state == "succeeded"


@asynchronous
async def test_a_workflow_that_comes_in_is_counted_once():
    """From when it runs until whoever submitted it goes on: another one comes in just then."""
    async with server(MemoryStore(), max_active=2) as host:
        keep, seen = host.executor.shelf.keep, []

        async def submit_another() -> None:
            try:
                seen.append(await host.submit(CHAIN_OF))
            except Exhausted as error:
                seen.append(error)

        def kept(submission: Submission, execution: Execution) -> None:
            keep(submission, execution)
            if not others:
                others.append(asyncio.get_running_loop().create_task(submit_another()))

        others: list[asyncio.Task[None]] = []
        host.executor.shelf.keep = kept
        first = await host.submit(CHAIN_OF)
        await others[0]
        assert not isinstance(seen[0], Exhausted)
        for record in (first, seen[0]):
            await host.events(record.workflow_id)
