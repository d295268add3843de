"""What the executor refuses, keeps and forgets."""

from __future__ import annotations

import asyncio

import pytest
from executor_rig import rig
from executor_workflows import CHAIN, DEBATE, asynchronous, one_step
from scripted_engine import MAX_CONTEXT

from laban.actors.errors import Conflict, Exhausted, InvalidInput, NotFound, OutOfRange
from laban.cluster import shelf
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.states import Overrides


@asynchronous
async def test_idempotency_keys():
    async with rig() as r:
        first, second = await asyncio.gather(
            *(r.submit(CHAIN, {"question": "a"}, idempotency_key="k") for _ in range(2))
        )
        assert first.workflow_id == second.workflow_id
        await r.end(first.workflow_id)
        again = await r.submit(CHAIN, {"question": "a"}, idempotency_key="k")
        assert (again.workflow_id, again.state) == (first.workflow_id, "succeeded")
        for changed in ({"question": "b"}, {"question": "a"}):
            overrides = Overrides(seed=1) if changed["question"] == "a" else None
            with pytest.raises(Conflict):
                await r.submit(CHAIN, changed, overrides=overrides, idempotency_key="k")
        other = await r.submit(CHAIN, {"question": "b"}, idempotency_key="k", tenant="other")
        assert other.workflow_id != first.workflow_id
        await r.end(other.workflow_id)
        for key in ("k" * 129, "k\0", "a\nb", "\ud800"):
            with pytest.raises(InvalidInput) as refused:
                await r.submit(CHAIN, {"question": "a"}, idempotency_key=key)
            assert refused.value.field == "idempotency_key"


@asynchronous
async def test_tenants_share_no_encodings():
    async with rig() as r:
        for tenant in ("a", "b"):
            record = await r.submit(CHAIN, {"question": "Why?"}, tenant=tenant)
            await r.end(record.workflow_id)
        ids = [{spec.encoding_id for spec in call.specs} for call in r.worker.engine.calls]
        assert ids[0] & ids[1]
        assert not (ids[0] | ids[1]) & (ids[2] | ids[3])


@asynchronous
async def test_finished_workflows_are_forgotten_oldest_first():
    async with rig(max_finished=2) as r:
        ids = []
        for n in range(4):
            record = await r.submit(CHAIN, {"question": str(n)}, idempotency_key=str(n))
            ids.append(record.workflow_id)
            await r.end(record.workflow_id)
        kept, _ = r.executor.list()
        assert [record.workflow_id for record in kept] == [ids[3], ids[2]]
        with pytest.raises(NotFound):
            r.executor.get(ids[0])
        assert len(r.executor.intake.claims) == len(r.executor.shelf) == 2
        new = await r.submit(CHAIN, {"question": "0"}, idempotency_key="0")
        assert new.workflow_id not in ids
        await r.end(new.workflow_id)


@asynchronous
async def test_too_many_active_workflows():
    async with rig(max_active=2) as r:
        r.worker.paused = True
        both = await asyncio.gather(*(r.submit(one_step()) for _ in range(3)), return_exceptions=True)
        refused = [each for each in both if isinstance(each, Exception)]
        assert len(refused) == 1
        assert isinstance(refused[0], Exhausted)
        r.worker.resume()
        for record in both:
            if not isinstance(record, Exception):
                await r.end(record.workflow_id)
        assert (await r.run(one_step())).state == "succeeded"


@asynchronous
async def test_pages_newest_first():
    async with rig() as r:
        ids = [(await r.run(one_step())).workflow_id for _ in range(5)]
        failed = (await r.run(one_step("FAIL"))).workflow_id
        first, token = r.executor.list(page_size=4)
        second, end = r.executor.list(page_size=4, page_token=token)
        assert [record.workflow_id for record in first + second] == [failed, *reversed(ids)]
        assert end == ""
        assert all(record.steps == () for record in first)
        only, _ = r.executor.list(states=["failed"])
        assert [record.workflow_id for record in only] == [failed]
        tokens = ("x", "9" * 5000, "9" * 19 + ".wf", "1.wf\0", "1.", ".wf")
        for bad in ({"page_size": -1}, {"page_size": 1001}, *({"page_token": token} for token in tokens)):
            with pytest.raises(InvalidInput):
                r.executor.list(**bad)


@asynchronous
async def test_a_page_is_no_larger_than_clients_take(monkeypatch):
    monkeypatch.setattr(shelf, "MAX_PAGE_CHARS", 1_000)
    async with rig() as r:
        ids = [(await r.run(one_step())).workflow_id for _ in range(5)]
        found, pages, token = [], 0, ""
        while not pages or token:
            page, token = r.executor.list(page_token=token)
            assert sum(shelf.size_of(record) for record in page) <= 1_000
            found += [record.workflow_id for record in page]
            pages += 1
        assert found == [*reversed(ids)]
        assert pages == 2
        monkeypatch.setattr(shelf, "MAX_PAGE_CHARS", 1)
        page, token = r.executor.list()
        assert (len(page), bool(token)) == (1, True)


@asynchronous
async def test_a_message_longer_than_the_context_is_refused_at_once():
    async with rig() as r:
        with pytest.raises(OutOfRange) as raised:
            await r.submit(CHAIN, {"question": "x" * MAX_CONTEXT})
        assert raised.value.field == "messages.task"
        with pytest.raises(WorkflowErrors):
            await r.submit(CHAIN, {})
        assert r.executor.list() == ([], "")


@asynchronous
async def test_a_view_that_outgrows_the_context_fails_its_step_naming_the_numbers():
    async with rig() as r:
        record = await r.run(CHAIN, {"question": "x" * (MAX_CONTEXT - 100)})
        assert record.state == "failed"
        assert record.error.status == "OUT_OF_RANGE"
        assert "step draft needs up to" in record.error.message
        assert str(MAX_CONTEXT) in record.error.message


@asynchronous
async def test_a_read_that_cannot_be_placed_fails_its_step_and_names_the_field_once():
    async with rig() as r:
        record = await r.run(one_step().replace("read: [task]", "read: [{read: task, begin: 5000}]"))
        assert record.state == "failed"
        assert (record.error.status, record.error.field) == ("INVALID_ARGUMENT", "read[0].begin")
        assert record.error.message.startswith("step 'only' failed: the read of 'task' begins beyond it: ")
        assert record.error.message.endswith("(got 5000)")


@asynchronous
async def test_nothing_is_kept_of_an_ended_workflow_but_what_it_shows():
    async with rig() as r:
        record = await r.run(DEBATE)
        execution = r.executor.shelf.find(record.workflow_id)
        assert execution._course is None
        assert not execution.board.feed._live
        assert not execution.board.feed._wakes
        slot = r.dispatcher._slots["w0"]
        ledger = r.dispatcher.router.ledger
        assert (slot.tickets, slot.account.queued_tokens, ledger.coming, ledger.being_made(record.workflow_id)) == (
            {},
            0,
            {},
            {},
        )
        assert not r.dispatcher._sent
