"""Timeouts, retries and what becomes of failures, of generating steps and external ones."""

from __future__ import annotations

import asyncio

import pytest
from executor_rig import results, rig, until
from executor_workflows import asynchronous, tool_step
from scripted_engine import decode

from laban.cluster import moves as to
from laban.cluster.records import Event
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.sampling import instance_seed
from laban.cluster.workflow.states import Overrides


def generating(more: str, prefill: str = "") -> str:
    return f"""
version: 1
name: one
messages: {{task: "What?"}}
steps:
  - {{step: draft, read: [task], prefill: "{prefill}", {more}}}
  - {{step: final, read: [task, draft]}}
"""


def draft_seeds(r) -> list[int]:
    return [call.sampling.seed for call in r.worker.engine.calls if "/draft#" in call.call_id]


@asynchronous
async def test_a_failed_call_is_tried_again_with_another_seed(monkeypatch):
    bad = 2

    def unfit(self, address: str, text: str) -> str:
        nonlocal bad
        bad -= address == "draft"
        return "found no score" if address == "draft" and bad >= 0 else ""

    monkeypatch.setattr(Run, "unfit", unfit)
    async with rig() as r:
        final = await r.run(generating("retries: {max: 2}"), overrides=Overrides(seed=5))
        assert final.state == "succeeded"
        draft = results(final)["draft"]
        assert draft.attempt == 3
        assert draft_seeds(r) == [instance_seed(5, address) for address in ("draft", "draft#2", "draft#3")]
        specs = r.worker.engine.calls[-1].specs
        assert sum("says" in decode(spec.tokens) for spec in specs) == 1  # the reader knows nothing of the others


@asynchronous
async def test_a_seed_of_its_own_changes_with_the_try_too():
    async with rig() as r:
        await r.run(generating("retries: {max: 1}, sampling: {seed: 9}", "FAIL"))
        assert draft_seeds(r) == [9, instance_seed(9, "draft#2")]


@asynchronous
async def test_retries_run_out_and_the_last_failure_counts():
    async with rig() as r:
        record = await r.submit(generating("retries: {max: 2, delay_s: 0.02}", "FAIL"))
        began = asyncio.get_running_loop().time()
        items = await r.items(record.workflow_id)
        passed = asyncio.get_running_loop().time() - began
        final = r.executor.get(record.workflow_id)
        assert (final.state, final.error.status) == ("failed", "RESOURCE_EXHAUSTED")
        assert passed >= 0.06  # 0.02, then twice as long
        told = [
            (e.attempt, e.step_state) for e in items if isinstance(e, Event) and e.address == "draft" and e.step_state
        ]
        assert told == [(1, "ready"), (2, "ready"), (3, "ready")]
        assert results(final)["draft"].attempt == 3


@asynchronous
async def test_a_worker_that_dies_keeps_the_seed_and_counts_on(monkeypatch):
    bad = 1

    def unfit(self, address: str, text: str) -> str:
        nonlocal bad
        bad -= 1
        return "no" if bad >= 0 else ""

    monkeypatch.setattr(Run, "unfit", unfit)
    async with rig() as r:
        r.worker.paused = True
        record = await r.submit(generating("retries: {max: 1}"), overrides=Overrides(seed=5))
        await until(lambda: r.worker.batches)
        r.worker.kill()
        final = await r.end(record.workflow_id)
        assert results(final)["draft"].attempt == 3
        calls = [*r.worker.engine.calls, *(call for made in r.supervisor.made for call in made.engine.calls)]
        drafts = {c.call_id.split("#")[1]: c.sampling.seed for c in calls if "/draft#" in c.call_id}
        assert drafts == {
            "1": instance_seed(5, "draft"),
            "2": instance_seed(5, "draft"),
            "3": instance_seed(5, "draft#2"),
        }


@asynchronous
async def test_worker_losses_are_counted_anew_in_each_try():
    async with rig() as r:
        final = await r.run(generating("retries: {max: 1}", "BOOM"))
        assert final.error.status == "UNAVAILABLE"
        assert "died in each of 3 attempts" in final.error.message
        assert results(final)["draft"].attempt == 6


@asynchronous
async def test_a_call_that_takes_too_long_is_aborted_and_tried_again():
    async with rig() as r:
        r.worker.paused = True
        record = await r.submit(generating("timeout_s: 0.3, retries: {max: 1}"))
        await until(lambda: len(r.worker.batches) == 2)
        assert r.worker.aborted == r.worker.batches[0]
        r.worker.resume()
        final = await r.end(record.workflow_id)
        assert (final.state, results(final)["draft"].attempt) == ("succeeded", 2)
        assert results(final)["draft"].wall_ms > 300  # times begin with the first try


@asynchronous
async def test_a_timeout_without_retries_fails_with_deadline_exceeded():
    async with rig() as r:
        r.worker.paused = True
        final = await r.run(generating("timeout_s: 0.15"))
        assert (final.state, final.error.status) == ("failed", "DEADLINE_EXCEEDED")
        assert "longer than 0.15 s" in final.error.message
        assert r.dispatcher.num_outstanding == 0


@asynchronous
async def test_a_time_limit_that_runs_out_as_the_end_of_its_try_is_written_down_is_no_second_failure():
    async with rig() as r:
        record = await r.submit(generating("timeout_s: 60, retries: {max: 1, delay_s: 0.1}", "FAIL"))
        execution = r.executor.shelf.find(record.workflow_id, None)
        await until(lambda: results(r.executor.get(record.workflow_id))["draft"].attempt == 2)
        execution.inbox.put(to.TimedOut("draft", 1))
        assert results(r.executor.get(record.workflow_id))["draft"].state == "ready"
        final = await r.end(record.workflow_id)
        assert final.error.status == "RESOURCE_EXHAUSTED"  # of the second try, which was made
        assert len(draft_seeds(r)) == 2


@pytest.mark.parametrize("leased", [False, True])
def test_an_external_step_times_out_in_a_handlers_hands_and_out_of_them(leased):
    @asynchronous
    async def scenario():
        async with rig() as r:
            workflow_id = (await r.submit(tool_step(more="timeout_s: 0.15"))).workflow_id
            if leased:
                assert await r.executor.lease_step(["run_tests"]) is not None
            final = await r.end(workflow_id)
            assert final.error.status == "DEADLINE_EXCEEDED"
            assert len(r.executor._desk("").leases) == 0

    scenario()


@asynchronous
async def test_a_timer_does_not_outlive_its_step():
    async with rig() as r:
        first = await r.submit(generating("timeout_s: 60"))
        second = await r.submit(tool_step(more="timeout_s: 60"))
        third = await r.submit(generating("retries: {max: 1, delay_s: 60}", "FAIL"))
        executions = [r.executor.shelf.find(record.workflow_id) for record in (first, second, third)]
        await until(lambda: results(r.executor.get(third.workflow_id))["draft"].attempt == 2)
        timers = [attempt._timer for execution in executions for attempt in execution._open.values() if attempt._timer]
        assert len(timers) >= 2
        await r.end(first.workflow_id)
        for record in (second, third):
            await r.executor.cancel(record.workflow_id)
        assert all(timer.cancelled() for timer in timers)
        assert not any(execution._open for execution in executions)


@asynchronous
async def test_a_condition_that_cannot_be_evaluated_is_the_workflows_mistake_and_no_bug_of_ours():
    async with rig() as r:
        final = await r.run(
            generating("values: [score]").replace("{step: final,", '{step: final, when: "draft.score > 5",')
        )
        assert (final.state, final.error.status) == ("failed", "FAILED_PRECONDITION")
        assert "`draft.score > 5` cannot be evaluated" in final.error.message


@asynchronous
async def test_a_crash_takes_timers_and_errands_along(monkeypatch):
    async with rig() as r:
        yaml = tool_step(more="timeout_s: 60").replace(
            "steps:", "steps:\n  - {step: other, read: [task], timeout_s: 60}"
        )
        record = await r.submit(yaml)
        execution = r.executor.shelf.find(record.workflow_id)
        timers = [attempt._timer for attempt in execution._open.values()]
        monkeypatch.setattr(execution._course.run, "finish", lambda *_: 1 / 0)
        final = await r.end(record.workflow_id)
        assert final.error.status == "INTERNAL"
        assert len(timers) == 2
        assert all(timer.cancelled() for timer in timers)
        assert len(r.executor._desk("").leases) == 0


@asynchronous
async def test_what_went_wrong_becomes_the_message():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(more="on_error: message"))).workflow_id
        await r.executor.fail_step(workflow_id, "tests", "2 of 3 failed")
        final = await r.end(workflow_id)
        assert final.state == "succeeded"
        step = results(final)["tests"]
        assert (step.state, step.text, step.finish_reason) == ("failed", "2 of 3 failed", "error")
        assert step.error.message == "2 of 3 failed"
        assert any("[user:]2 of 3 failed|" in decode(spec.tokens) for spec in r.worker.engine.calls[-1].specs)
        # What ended the step is its answer.
        await r.executor.fail_step(workflow_id, "tests", "2 of 3 failed")


@asynchronous
async def test_a_generated_steps_failure_becomes_its_message_after_the_last_try():
    async with rig() as r:
        final = await r.run(generating("on_error: message, retries: {max: 1}", "FAIL "))
        assert final.state == "succeeded"
        assert results(final)["draft"].text == "the script says so"
        read = [decode(spec.tokens) for spec in r.worker.engine.calls[-1].specs]
        assert any("[assistant:]FAIL the script says so|" in text for text in read)


@asynchronous
async def test_skipped_failures_are_tried_again_first():
    async with rig() as r:
        final = await r.run(generating("on_error: skip, retries: {max: 1}", "FAIL"))
        assert final.state == "succeeded"
        assert (results(final)["draft"].state, results(final)["draft"].attempt) == ("failed", 2)


CHOICE = "choices: [ab, abc], sampling: {max_tokens: 1"


@asynchronous
@pytest.mark.parametrize(
    ("more", "state", "text"),
    [
        (f"{CHOICE}}}", "failed", ""),
        (f"{CHOICE}}}, retries: {{max: 1}}, on_error: message", "succeeded", "the text is none of the `choices`"),
        (f"{CHOICE}, forced_text: x}}", "succeeded", "x"),
        (f"{CHOICE}, stop: [q]}}", "failed", ""),
    ],
)
async def test_a_text_that_was_cut_off_before_it_was_a_choice_fails_its_try(more: str, state: str, text: str):
    async with rig() as r:
        final = await r.run(generating(more))
        draft = results(final)["draft"]
        assert (final.state, draft.text[: len(text)]) == (state, text)
        if draft.state == "failed":
            assert draft.error.status == "FAILED_PRECONDITION"
            assert "cut off after 1 token; expected a larger max_tokens" in draft.error.message
            assert draft.attempt == 1 + ("retries" in more)


@asynchronous
async def test_a_range_beyond_a_message_is_said_of_its_read():
    """Not of its place in the view, where the agent's prompt is the first."""
    reads = "agent: ann, read: [task, {read: draft, begin: 900}]"
    text = generating("retries: 0").replace("read: [task, draft]", reads)
    async with rig() as r:
        final = await r.run(text + "agents: {ann: Be Ann}\n")
        error = results(final)["final"].error
        assert error.field == "read[1].begin"
        assert "the read of 'draft' begins beyond it: the message has " in error.message
        assert error.message.endswith("(got 900)")
        assert "the read of 'draft' begins beyond it" in final.error.message
