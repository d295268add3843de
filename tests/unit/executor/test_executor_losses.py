"""Workers that die and errors inside: what becomes of the workflows."""

from __future__ import annotations

import asyncio
import random

import pytest
from executor_rig import results, rig, until
from executor_workflows import CHAIN, DEBATE, asynchronous, one_step

from laban.cluster.records import TERMINAL_STEP, Event, TokenChunk
from laban.cluster.workflow.states import Overrides


@asynchronous
async def test_a_dead_worker_means_another_attempt_that_voids_the_chunks():
    async with rig() as r:
        record = await r.submit(CHAIN, {"question": "Why?"})
        watch = r.executor.watch(record.workflow_id)
        items = []
        while not any(isinstance(item, TokenChunk) for item in items):
            items.append(await anext(watch))
        r.worker.kill("the power went")
        items += [item async for item in watch]
        final = r.executor.get(record.workflow_id)
        assert final.state == "succeeded"
        assert results(final)["draft"].attempt == 2
        assert results(final)["final"].attempt == 1
        states = [(e.attempt, e.step_state) for e in items if isinstance(e, Event) and e.address == "draft"]
        assert states == [(1, "ready"), (1, "running"), (2, "ready"), (2, "running")]
        second = [c for c in items if isinstance(c, TokenChunk) and c.address == "draft" and c.attempt == 2]
        assert second[0].index == 0
        assert "".join(c.text for c in second) == results(final)["draft"].text
        assert r.worker.closed
        assert [w.alive for w in r.executor.status().workers] == [True]
        # The same seed, so the same text as if nothing had happened.
        assert r.supervisor.made[0].engine.calls[0].sampling == r.worker.engine.calls[0].sampling


@asynchronous
async def test_a_lost_worker_that_cannot_be_closed_comes_back_all_the_same(monkeypatch):
    async def close() -> None:
        raise RuntimeError("its process does not answer")

    async with rig() as r:
        monkeypatch.setattr(r.worker, "close", close)
        record = await r.submit(CHAIN, {"question": "Why?"})
        r.worker.kill("the power went")
        assert (await r.end(record.workflow_id)).state == "succeeded"


@asynchronous
async def test_a_call_that_kills_every_worker_fails_its_step_and_the_next_workflow_runs():
    async with rig() as r:
        record = await r.run(one_step("BOOM"))
        assert record.state == "failed"
        assert record.error.status == "UNAVAILABLE"
        assert "died in each of 3 attempts" in record.steps[0].error.message
        assert record.steps[0].attempt == 3
        assert (await r.run(one_step())).state == "succeeded"


@asynchronous
async def test_without_any_worker_steps_fail_as_unavailable():
    async with rig(supervised=False) as r:
        record = await r.submit(one_step())
        r.worker.kill()
        assert (await r.end(record.workflow_id)).error.status == "UNAVAILABLE"
        assert (await r.run(one_step())).error.status == "UNAVAILABLE"
        assert not r.executor.status().ready


@asynchronous
async def test_calls_wait_while_a_worker_comes_back_and_fail_when_it_does_not():
    async with rig(failures=2) as r:
        r.worker.kill()
        await until(lambda: r.worker.closed)
        assert (await r.run(one_step())).state == "succeeded"
        r.supervisor.failures = 99
        r.supervisor.made[0].kill()
        await until(lambda: r.supervisor.made[0].closed)
        assert (await r.run(one_step())).error.status == "UNAVAILABLE"


@asynchronous
async def test_a_dead_workers_calls_move_to_another():
    async with rig(2) as r:
        for worker in r.workers:
            worker.paused = True
        record = await r.submit(DEBATE)
        await until(lambda: all(worker.batches for worker in r.workers))
        r.supervisor.failures = 99
        r.workers[0].kill()
        await until(lambda: r.workers[0].closed)
        r.workers[1].resume()
        final = await r.end(record.workflow_id)
        assert final.state == "succeeded"
        assert {step.worker for step in final.steps} == {"w1"}


@asynchronous
async def test_an_error_inside_ends_the_workflow_and_nothing_else(monkeypatch):
    async with rig() as r:
        other = await r.submit(CHAIN, {"question": "Why?"})
        record = await r.submit(one_step())
        execution = r.executor.shelf.find(record.workflow_id)
        monkeypatch.setattr(execution._course.run, "finish", lambda *_: 1 / 0)
        final = await r.end(record.workflow_id)
        assert final.state == "failed"
        assert final.error.status == "INTERNAL"
        assert "ZeroDivisionError" in final.error.message
        assert (await r.end(other.workflow_id)).state == "succeeded"


@asynchronous
async def test_an_error_while_taking_tokens_ends_the_workflow(monkeypatch):
    async with rig() as r:
        record = await r.submit(one_step())
        feed = r.executor.shelf.find(record.workflow_id).board.feed
        monkeypatch.setattr(feed, "add_text", lambda *_: 1 / 0)
        final = await r.end(record.workflow_id)
        assert final.error.status == "INTERNAL"
        assert r.worker.aborted == r.worker.batches[0]
        assert (await r.run(one_step())).state == "succeeded"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_dies_when_every_workflow_ends_and_nothing_is_left(seed):
    chance = random.Random(seed)

    async def scenario():
        async with rig(3) as r:
            ids = []
            for n in range(6):
                fidelity = chance.choice(["exact", "direct"])
                ids.append((await r.submit(DEBATE, overrides=Overrides(fidelity=fidelity, seed=n))).workflow_id)
            ends = [asyncio.create_task(r.end(workflow_id)) for workflow_id in ids]
            for _ in range(3):
                await asyncio.sleep(chance.random() * 0.01)
                alive = [w for w in (*r.workers, *r.supervisor.made) if not w.closed]
                if alive:
                    chance.choice(alive).kill("by chance")
            if chance.random() < 0.5:
                await r.executor.cancel(chance.choice(ids))
            records = await asyncio.gather(*ends)
            for record in records:
                # Three attempts are enough for three deaths unless the last falls upon the third.
                assert record.state in ("succeeded", "cancelled", "failed")
                assert record.state != "failed" or record.error.status == "UNAVAILABLE"
                assert all(step.state in TERMINAL_STEP for step in record.steps)
            await until(lambda: all(status.alive for status in r.executor.status().workers))
            for slot in r.dispatcher._slots.values():
                assert (slot.tickets, slot.account.queued_tokens) == ({}, 0)
            assert (await r.run(one_step())).state == "succeeded"

    asyncio.run(scenario())


@asynchronous
async def test_the_text_of_a_run_does_not_depend_on_who_died():
    texts = []
    for kill in (False, True):
        async with rig(2) as r:
            record = await r.submit(DEBATE, overrides=Overrides(seed=3))
            if kill:
                await until(lambda r=r: any(worker.batches for worker in r.workers))
                r.workers[0].kill()
            texts.append({step.address: step.text for step in (await r.end(record.workflow_id)).steps})
    assert texts[0] == texts[1]


@asynchronous
async def test_an_error_in_routing_ends_the_workflow(monkeypatch):
    async with rig() as r:
        monkeypatch.setattr(r.dispatcher.router, "choose", lambda *_: 1 / 0)
        record = await r.run(one_step())
        assert record.error.status == "INTERNAL"
        assert "routing failed" in record.error.message
