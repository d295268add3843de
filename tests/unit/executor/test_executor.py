"""Workflows from submission to their end, over scripted workers."""

from __future__ import annotations

import asyncio

import pytest
from executor_rig import results, rig, until
from executor_workflows import CHAIN, DEBATE, EXTERNAL, asynchronous, one_step
from scripted_engine import MAX_CONTEXT, decode

from laban.actors.errors import Conflict, FailedPrecondition, NotFound, OutOfRange
from laban.cluster.records import TERMINAL_STEP
from laban.cluster.workflow.states import Overrides
from laban.kvstore.encodings import flatten


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
        assert {step.error.message for step in record.steps if step.state == "skipped"} <= {"no longer needed"}


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
        assert {step.error.message for step in cancelled.steps} == {"the run was cancelled"}
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
