"""Workflows from submission to their end, over scripted workers."""

from __future__ import annotations

import asyncio
import functools
import random

import pytest
from executor_rig import results, rig, until
from scripted_engine import MAX_CONTEXT, decode

from laban.actors.errors import Conflict, Exhausted, FailedPrecondition, InvalidInput, NotFound, OutOfRange
from laban.cluster.records import TERMINAL_STEP, Event, TokenChunk
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.states import Overrides
from laban.kvstore.encodings import flatten

CHAIN = """
version: 1
name: chain
inputs: {question: {type: string}}
messages: {task: "{{ question }}"}
steps:
  - {step: draft, read: [task]}
  - {step: final, read: [task, draft]}
outputs: {answer: final}
"""

DEBATE = """
version: 1
name: debate
messages: {task: "What?"}
agents: {ann: "You are Ann", bob: "You are Bob", cyd: "You are Cyd"}
steps:
  - step: answer
    for_each: agents
    rounds: 2
    read: [task, "answer[others,previous]"]
outputs: {last: "answer[ann,2]"}
"""

EXTERNAL = """
version: 1
name: ask
messages: {task: "What?"}
steps:
  - {step: human, external: {}, read: [task]}
  - {step: final, read: [task, human]}
"""


def asynchronous(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


def one_step(prefill: str = "", **sampling: object) -> str:
    values = ", ".join(f"{key}: {value}" for key, value in sampling.items())
    return f"""
version: 1
name: one
messages: {{task: "What?"}}
steps: [{{step: only, read: [task], prefill: "{prefill}", sampling: {{{values}}}}}]
"""


@asynchronous
async def test_a_chain_succeeds_and_exact_reuses_what_was_generated():
    async with rig() as r:
        record = await r.run(CHAIN, {"question": "Why?"})
        assert record.state == "succeeded"
        steps = results(record)
        assert dict(record.outputs) == {"answer": steps["final"].text}
        draft, final = steps["draft"], steps["final"]
        assert draft.text.startswith("says ")
        assert decode(draft.token_ids) == draft.text
        assert (draft.state, draft.attempt, draft.worker, draft.finish_reason) == ("succeeded", 1, "w0", "stop")
        # The root and the task, then also the draft, all of it encoded when it was generated.
        assert (draft.tokens_read, draft.tokens_reused) == (len("^[user:]Why?|"), 0)
        assert final.tokens_read == final.tokens_reused == len(f"^[user:]Why?|[assistant:]{draft.text}|")
        assert record.ttft_ms_sum == draft.ttft_ms + final.ttft_ms
        view = r.worker.engine.calls[1].view
        assert view.placements == ()


@asynchronous
async def test_what_becomes_ready_together_leaves_as_one_batch():
    async with rig() as r:
        record = await r.run(DEBATE)
        assert record.state == "succeeded"
        assert [len(batch) for batch in r.worker.batches[:1]] == [3]
        assert sum(len(batch) for batch in r.worker.batches) == 6


@asynchronous
async def test_direct_places_others_messages_at_offsets():
    async with rig() as r:
        record = await r.run(DEBATE, overrides=Overrides(fidelity="direct"))
        assert record.state == "succeeded"
        second = next(call for call in r.worker.engine.calls if "answer[cyd,2]" in call.call_id)
        specs = {spec.encoding_id: spec for spec in second.specs}
        texts = [decode(specs[placed.encoding_id].tokens) for placed in flatten(second.view, specs)]
        assert texts[:3] == ["^", "[system:]You are Cyd|", "[user:]What?|"]
        assert [text[:17] for text in texts[3:]] == ["[assistant:]says "] * 2
        offsets = [p.position - specs[p.encoding_id].start for p in flatten(second.view, specs)]
        assert offsets[2] > 0
        assert results(record)["answer[cyd,2]"].fidelity == "direct"
        assert results(record)["answer[cyd,2]"].tokens_encoded < 40


@asynchronous
async def test_events_are_numbered_and_chunks_add_up():
    async with rig() as r:
        record = await r.submit(DEBATE)
        items = await r.items(record.workflow_id)
        events = [item for item in items if isinstance(item, Event)]
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert (events[0].workflow_state, events[-1].workflow_state) == ("running", "succeeded")
        assert r.executor.get(record.workflow_id).last_event == len(events)
        for step in r.executor.get(record.workflow_id).steps:
            own = [e for e in events if (e.address or (e.result and e.result.address)) == step.address]
            assert [e.step_state or e.result.state for e in own] == ["ready", "running", "succeeded"]
            chunks = [c for c in items if isinstance(c, TokenChunk) and c.address == step.address]
            assert "".join(chunk.text for chunk in chunks) == step.text
            assert sum((chunk.token_ids for chunk in chunks), ()) == step.token_ids
            assert [chunk.index for chunk in chunks] == sorted({chunk.index for chunk in chunks})
            assert items.index(own[1]) < items.index(chunks[0]) < items.index(chunks[-1]) < items.index(own[2])


@asynchronous
async def test_a_watch_that_resumes_gets_the_text_so_far_in_one_chunk():
    async with rig() as r:
        record = await r.submit(one_step())
        first = r.executor.watch(record.workflow_id)
        seen = []
        while not seen or "says 1"[:5] not in "".join(c.text for c in seen if isinstance(c, TokenChunk)):
            seen.append(await anext(first))
        r.worker.paused = True
        await first.aclose()
        last = max(item.number for item in seen if isinstance(item, Event))
        again = r.executor.watch(record.workflow_id, last)
        chunk = await anext(again)
        assert isinstance(chunk, TokenChunk)
        assert chunk.index == 0
        assert chunk.text.startswith("says")
        r.worker.resume()
        rest = [item async for item in again]
        text = chunk.text + "".join(c.text for c in rest if isinstance(c, TokenChunk))
        assert text == r.executor.get(record.workflow_id).steps[0].text
        numbers = [item.number for item in rest if isinstance(item, Event)]
        assert numbers == list(range(last + 1, last + 1 + len(numbers)))


@asynchronous
async def test_a_watch_of_an_ended_workflow_replays_its_events_alone():
    async with rig() as r:
        record = await r.run(CHAIN, {"question": "Why?"})
        items = await r.items(record.workflow_id)
        assert all(isinstance(item, Event) for item in items)
        assert await r.items(record.workflow_id, len(items)) == []
        with pytest.raises(InvalidInput, match="after_event"):
            await r.items(record.workflow_id, len(items) + 1)


@asynchronous
async def test_a_slow_watcher_holds_nothing_up_and_misses_no_event():
    async with rig() as r:
        record = await r.submit(DEBATE)
        slow = r.executor.watch(record.workflow_id)
        items = [await anext(slow)]
        await r.end(record.workflow_id)
        items += [item async for item in slow]
        numbers = [item.number for item in items if isinstance(item, Event)]
        assert numbers == list(range(1, len(numbers) + 1))
        for step in r.executor.get(record.workflow_id).steps:
            chunks = [c for c in items if isinstance(c, TokenChunk) and c.address == step.address]
            assert len(chunks) == 1, "what it missed comes as one chunk"
            assert chunks[0].text == step.text


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
async def test_a_failed_step_fails_the_workflow_with_its_error():
    async with rig() as r:
        yaml = CHAIN.replace("read: [task]}", "read: [task], prefill: FAIL}")
        record = await r.run(yaml, {"question": "Why?"})
        assert record.state == "failed"
        assert record.error.status == "RESOURCE_EXHAUSTED"
        assert "draft" in record.error.message
        assert "the script says so" in record.error.message
        assert {step.address: step.state for step in record.steps} == {"draft": "failed", "final": "skipped"}
        assert record.outputs == ()


@asynchronous
async def test_a_join_that_tolerates_a_failure_goes_on_and_aborts_what_it_does_not_need():
    yaml = """
version: 1
name: any
messages: {task: "What?"}
agents: {ann: Ann, bob: "FAIL", cyd: "SLOWLY"}
steps:
  - {step: try, for_each: agents, read: [task], prefill: "{{ 'FAIL' if agent == 'bob' else '' }}"}
  - {step: final, read: [task, try], join: {at_least: 1, rest: cancel}}
"""
    async with rig() as r:
        record = await r.run(yaml)
        assert record.state == "succeeded", record.error
        states = {step.address: step.state for step in record.steps}
        assert states["try[bob]"] == "failed"
        assert states["final"] == "succeeded"
        assert all(step.state in TERMINAL_STEP for step in record.steps)


@asynchronous
async def test_cancel_aborts_and_ends_every_watch():
    async with rig() as r:
        r.worker.paused = True
        record = await r.submit(DEBATE)
        await until(lambda: r.worker.batches)
        watching = asyncio.create_task(r.items(record.workflow_id))
        await asyncio.sleep(0)
        cancelled = await r.executor.cancel(record.workflow_id)
        assert cancelled.state == "cancelled"
        assert {step.state for step in cancelled.steps} == {"cancelled"}
        assert (await watching)[-1].workflow_state == "cancelled"
        assert sorted(r.worker.aborted) == sorted(r.worker.batches[0])
        assert r.dispatcher.num_outstanding == 0
        assert (await r.executor.cancel(record.workflow_id)) == cancelled
        r.worker.resume()
        assert (await r.run(one_step())).state == "succeeded"
        assert (await r.executor.cancel((await r.run(one_step())).workflow_id)).state == "succeeded"


@asynchronous
async def test_external_steps_wait_are_completed_once_and_are_read():
    async with rig() as r:
        record = await r.submit(EXTERNAL)
        workflow_id = record.workflow_id
        assert results(record)["human"].state == "ready"
        with pytest.raises(NotFound):
            await r.executor.complete_step(workflow_id, "nobody", "x")
        with pytest.raises(FailedPrecondition, match="waiting"):
            await r.executor.complete_step(workflow_id, "final", "x")
        with pytest.raises(OutOfRange):
            await r.executor.complete_step(workflow_id, "human", "x" * MAX_CONTEXT)
        done = await r.executor.complete_step(workflow_id, "human", "forty-two")
        assert results(done)["human"].text == "forty-two"
        assert results(done)["human"].finish_reason == "external"
        await r.executor.complete_step(workflow_id, "human", "forty-two")
        with pytest.raises(Conflict):
            await r.executor.complete_step(workflow_id, "human", "other")
        with pytest.raises(Conflict):
            await r.executor.fail_step(workflow_id, "human", "no")
        final = await r.end(workflow_id)
        assert final.state == "succeeded"
        await r.executor.complete_step(workflow_id, "human", "forty-two")
        call = r.worker.engine.calls[-1]
        assert any("forty-two" in decode(spec.tokens) for spec in call.specs)


@asynchronous
async def test_a_failed_external_step():
    async with rig() as r:
        record = await r.submit(EXTERNAL)
        await r.executor.fail_step(record.workflow_id, "human", "nobody home")
        final = await r.executor.fail_step(record.workflow_id, "human", "nobody home")
        assert final.state == "failed"
        assert "nobody home" in final.error.message


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
        with pytest.raises(InvalidInput):
            await r.submit(CHAIN, {"question": "a"}, idempotency_key="k" * 129)


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
        assert len(r.executor._claims) == len(r.executor._claimed) == len(r.executor._numbers) == 2
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
        for bad in ({"page_size": -1}, {"page_size": 1001}, {"page_token": "x"}):
            with pytest.raises(InvalidInput):
                r.executor.list(**bad)


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
        assert (record.error.status, record.error.field) == ("INVALID_ARGUMENT", "view[0].begin")
        assert record.error.message.startswith("step 'only' failed: expected 0 to ")
        assert record.error.message.endswith("(got 5000)")


@asynchronous
async def test_seeds_differ_between_steps_and_agree_between_runs():
    async with rig() as r:
        for _ in range(2):
            await r.run(DEBATE, overrides=Overrides(seed=7))
        seeds = {call.call_id.split("/")[1]: call.sampling.seed for call in r.worker.engine.calls}
        assert len(set(seeds.values())) == 6
        assert len({call.sampling.seed for call in r.worker.engine.calls}) == 6


@asynchronous
async def test_forced_text_and_its_worst_case():
    async with rig() as r:
        record = await r.run(one_step(max_tokens=5000, forced_text="'hello world'"))
        assert (record.state, record.steps[0].text) == ("succeeded", "hello world")
        assert record.steps[0].finish_reason == "forced"


@asynchronous
async def test_an_error_inside_ends_the_workflow_and_nothing_else(monkeypatch):
    async with rig() as r:
        other = await r.submit(CHAIN, {"question": "Why?"})
        record = await r.submit(one_step())
        execution = r.executor._executions[record.workflow_id]
        monkeypatch.setattr(execution._run, "finish", lambda *_: 1 / 0)
        final = await r.end(record.workflow_id)
        assert final.state == "failed"
        assert final.error.status == "INTERNAL"
        assert "ZeroDivisionError" in final.error.message
        assert (await r.end(other.workflow_id)).state == "succeeded"


@asynchronous
async def test_an_error_while_taking_tokens_ends_the_workflow(monkeypatch):
    async with rig() as r:
        record = await r.submit(one_step())
        feed = r.executor._executions[record.workflow_id].board.feed
        monkeypatch.setattr(feed, "add_text", lambda *_: 1 / 0)
        final = await r.end(record.workflow_id)
        assert final.error.status == "INTERNAL"
        assert r.worker.aborted == r.worker.batches[0]
        assert (await r.run(one_step())).state == "succeeded"


@asynchronous
async def test_nothing_is_kept_of_an_ended_workflow_but_what_it_shows():
    async with rig() as r:
        record = await r.run(DEBATE)
        execution = r.executor._executions[record.workflow_id]
        assert execution._run is None
        assert execution._book is None
        assert not execution.board.feed._live
        assert not execution.board.feed._wakes
        slot = r.dispatcher._slots["w0"]
        assert (slot.tickets, slot.queued_tokens, dict(slot._coming)) == ({}, 0, {})
        assert not r.dispatcher._sent


@asynchronous
async def test_stopping_ends_watches():
    async with rig() as r:
        r.worker.paused = True
        record = await r.submit(one_step())
        watching = asyncio.create_task(r.items(record.workflow_id))
        await asyncio.sleep(0)
        await r.executor.stop()
        assert (await watching)[-1].workflow_state == "cancelled"


@asynchronous
async def test_too_many_watchers():
    async with rig() as r:
        r.worker.paused = True
        record = await r.submit(one_step())
        watches = [r.executor.watch(record.workflow_id) for _ in range(65)]
        for watch in watches[:64]:
            await anext(watch)
        with pytest.raises(Exhausted):
            await anext(watches[64])
        for watch in watches:
            await watch.aclose()
        await anext(r.executor.watch(record.workflow_id))
        await r.executor.cancel(record.workflow_id)


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
                assert (slot.tickets, slot.queued_tokens, dict(slot._coming)) == ({}, 0, {})
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
        monkeypatch.setattr(r.dispatcher, "_choose", lambda order: 1 / 0)
        record = await r.run(one_step())
        assert record.error.status == "INTERNAL"
        assert "routing failed" in record.error.message
