"""External steps: leased, answered once, lost with their handlers, gone with their workflow."""

from __future__ import annotations

import asyncio

import pytest
from executor_rig import results, rig, until
from executor_workflows import asynchronous, tool_step
from scripted_engine import decode

from laban.actors.errors import Conflict, FailedPrecondition, InvalidInput, NotFound
from laban.cluster.records import LeaseMessage
from laban.cluster.workflow.run import Run

TOOLS = ["run_tests"]


def states(r, workflow_id: str, address: str = "tests") -> list[tuple]:
    events = r.executor.shelf.find(workflow_id).board.feed._events
    return [(e.attempt, e.step_state, e.worker) for e in events if e.address == address and e.step_state]


def assert_nothing_left(r, workflow_id: str) -> None:
    execution, desk = r.executor.shelf.find(workflow_id), r.executor._desk("")
    assert (len(desk.leases), execution._open, execution._course) == (0, {}, None)


@asynchronous
async def test_a_step_is_leased_and_completed():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step())).workflow_id
        lease = await r.executor.lease_step(TOOLS, handler="hal")
        assert (lease.workflow_id, lease.address, lease.tool, lease.attempt) == (workflow_id, "tests", "run_tests", 1)
        assert (dict(lease.args), lease.duration_s, lease.output_schema) == ({"n": 3}, 30.0, None)
        assert lease.messages == (LeaseMessage("task", "user", "", "What?"),)
        step = results(r.executor.get(workflow_id))["tests"]
        assert (step.state, step.worker, step.tool, dict(step.args)) == ("running", "hal", "run_tests", {"n": 3})
        assert (await r.executor.renew_lease(lease.lease_id)).messages == ()
        await r.executor.complete_step(
            workflow_id, "tests", output={"ok": [True, "é"], "a": 1}, lease_id=lease.lease_id
        )
        final = await r.end(workflow_id)
        step = results(final)["tests"]
        assert (step.text, step.finish_reason, step.worker) == ('{"a":1,"ok":[true,"é"]}', "external", "hal")
        assert any('{"a":1,"ok":[true,"é"]}' in decode(spec.tokens) for spec in r.worker.engine.calls[-1].specs)
        assert states(r, workflow_id) == [(1, "ready", ""), (1, "running", "hal")]
        assert_nothing_left(r, workflow_id)


@asynchronous
async def test_what_a_lease_brings_is_recorded_once():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step())).workflow_id
        lease = await r.executor.lease_step(TOOLS)
        for _ in range(2):
            await r.executor.complete_step(workflow_id, "tests", "done", lease_id=lease.lease_id)
        await r.end(workflow_id)
        await r.executor.complete_step(workflow_id, "tests", "done", lease_id=lease.lease_id)
        await r.executor.complete_step(workflow_id, "tests", "done")
        with pytest.raises(Conflict):
            await r.executor.complete_step(workflow_id, "tests", "other", lease_id=lease.lease_id)
        with pytest.raises(Conflict):
            await r.executor.fail_step(workflow_id, "tests", "no", lease_id=lease.lease_id)
        with pytest.raises(Conflict):
            await r.executor.complete_step(workflow_id, "tests", "other")
        with pytest.raises(FailedPrecondition, match="lease"):
            await r.executor.complete_step(workflow_id, "tests", "other", lease_id="none")


@asynchronous
async def test_a_handler_that_falls_silent_is_followed_by_another_and_changes_nothing_afterwards():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(lease_s=0.2))).workflow_id
        first = await r.executor.lease_step(TOOLS, handler="one")
        second = await r.executor.lease_step(TOOLS, handler="two", wait_s=5)
        assert (second.attempt, second.address) == (2, "tests")
        with pytest.raises(FailedPrecondition, match="lease"):
            await r.executor.renew_lease(first.lease_id)
        with pytest.raises(FailedPrecondition, match="lease has run out"):
            await r.executor.complete_step(workflow_id, "tests", "late", lease_id=first.lease_id)
        with pytest.raises(FailedPrecondition, match="lease has run out"):
            await r.executor.fail_step(workflow_id, "tests", "late", lease_id=first.lease_id)
        await r.executor.complete_step(workflow_id, "tests", "second", lease_id=second.lease_id)
        with pytest.raises(FailedPrecondition, match="lease has run out"):
            await r.executor.complete_step(workflow_id, "tests", "late", lease_id=first.lease_id)
        await r.executor.complete_step(workflow_id, "tests", "second", lease_id=first.lease_id)
        step = results(await r.end(workflow_id))["tests"]
        assert (step.text, step.worker, step.attempt) == ("second", "two", 2)
        assert states(r, workflow_id) == [
            (1, "ready", ""),
            (1, "running", "one"),
            (2, "ready", ""),
            (2, "running", "two"),
        ]


@asynchronous
async def test_a_renewed_lease_does_not_run_out():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(lease_s=0.4))).workflow_id
        lease = await r.executor.lease_step(TOOLS)
        for _ in range(6):
            await asyncio.sleep(0.1)
            await r.executor.renew_lease(lease.lease_id)
        await r.executor.complete_step(workflow_id, "tests", "done", lease_id=lease.lease_id)
        assert results(await r.end(workflow_id))["tests"].attempt == 1


@asynchronous
async def test_a_step_that_loses_every_handler_fails():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(lease_s=0.01, more="retries: {max: 1}"))).workflow_id
        attempts = [(await r.executor.lease_step(TOOLS, wait_s=5)).attempt for _ in range(6)]
        assert attempts == [1, 2, 3, 4, 5, 6]  # three of each try
        final = await r.end(workflow_id)
        assert (final.state, final.error.status) == ("failed", "UNAVAILABLE")
        assert "the handler of tests was lost 3 times" in final.error.message
        assert_nothing_left(r, workflow_id)


@asynchronous
async def test_an_answer_by_hand_voids_the_lease():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step())).workflow_id
        lease = await r.executor.lease_step(TOOLS, handler="hal")
        await r.executor.complete_step(workflow_id, "tests", "by hand")
        with pytest.raises(FailedPrecondition):
            await r.executor.renew_lease(lease.lease_id)
        with pytest.raises(FailedPrecondition):
            await r.executor.complete_step(workflow_id, "tests", "by hal", lease_id=lease.lease_id)
        step = results(await r.end(workflow_id))["tests"]
        assert (step.text, step.worker) == ("by hand", "")


@asynchronous
async def test_a_lease_is_good_for_its_own_step_alone():
    async with rig() as r:
        ids = [(await r.submit(tool_step())).workflow_id for _ in range(2)]
        lease = await r.executor.lease_step(TOOLS, workflow_id=ids[1])
        assert lease.workflow_id == ids[1]
        with pytest.raises(FailedPrecondition, match="lease"):
            await r.executor.complete_step(ids[0], "tests", "x", lease_id=lease.lease_id)
        with pytest.raises(FailedPrecondition, match="expected an external step"):
            await r.executor.complete_step(ids[0], "final", "x")
        with pytest.raises(NotFound):
            await r.executor.complete_step(ids[0], "nobody", "x")
        for workflow_id in ids:
            await r.executor.complete_step(workflow_id, "tests", "x")
            await r.end(workflow_id)


@asynchronous
async def test_a_failure_is_tried_again_until_it_is_final():
    async with rig() as r:
        yaml = tool_step(more="retries: {max: 2, delay_s: 0.01}")
        workflow_id = (await r.submit(yaml)).workflow_id
        first = await r.executor.lease_step(TOOLS)
        await r.executor.fail_step(workflow_id, "tests", "no", lease_id=first.lease_id)
        assert results(r.executor.get(workflow_id))["tests"].state == "ready"
        second = await r.executor.lease_step(TOOLS)
        assert second.attempt == 2
        await r.executor.fail_step(workflow_id, "tests", "no", lease_id=first.lease_id)  # again: no error, no effect
        await r.executor.renew_lease(second.lease_id)
        await r.executor.fail_step(workflow_id, "tests", "not again", lease_id=second.lease_id, final=True)
        final = await r.end(workflow_id)
        assert (final.state, results(final)["tests"].attempt) == ("failed", 2)
        assert "not again" in final.error.message
        assert_nothing_left(r, workflow_id)


@asynchronous
async def test_an_answer_may_come_by_hand_between_two_tries():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(more="retries: {max: 1, delay_s: 60}"))).workflow_id
        await r.executor.fail_step(workflow_id, "tests", "no")
        assert await r.executor.lease_step(TOOLS, wait_s=0.01) is None
        await r.executor.complete_step(workflow_id, "tests", "yes")
        assert (await r.end(workflow_id)).state == "succeeded"
        assert_nothing_left(r, workflow_id)


SCHEMA = ", output_schema: {type: object, properties: {n: {type: integer}}, required: [n]}"


@asynchronous
async def test_an_output_that_the_schema_refuses_leaves_the_step_waiting():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(external=SCHEMA))).workflow_id
        lease = await r.executor.lease_step(TOOLS)
        assert lease.output_schema["required"] == ["n"]
        for wrong in (
            {"output": {"n": "x"}},
            {"output": None},
            {"text": "n"},
            {"text": '{"n": NaN}'},
            {"text": "[" * 9000},
        ):
            with pytest.raises(InvalidInput) as caught:
                await r.executor.complete_step(workflow_id, "tests", lease_id=lease.lease_id, **wrong)
            assert caught.value.field == "output"
        await r.executor.renew_lease(lease.lease_id)
        await r.executor.complete_step(workflow_id, "tests", '{"n": 1}', lease_id=lease.lease_id)
        assert results(await r.end(workflow_id))["tests"].text == '{"n": 1}'


@asynchronous
async def test_a_text_that_will_not_do_is_a_failed_try(monkeypatch):
    monkeypatch.setattr(Run, "unfit", lambda self, address, text: "no number in it" if text == "none" else "")
    monkeypatch.setattr(Run, "values", lambda self, address: {"n": 4} if address == "tests" else {})
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(more="retries: {max: 1}"))).workflow_id
        await r.executor.complete_step(workflow_id, "tests", "none")
        step = results(r.executor.get(workflow_id))["tests"]
        assert (step.state, step.attempt) == ("ready", 2)
        lease = await r.executor.lease_step(TOOLS)
        await r.executor.complete_step(workflow_id, "tests", "4", lease_id=lease.lease_id)
        step = results(await r.end(workflow_id))["tests"]
        assert (step.text, dict(step.values)) == ("4", {"n": 4})


@asynchronous
async def test_a_cancelled_workflow_takes_its_leases_along_and_frees_who_waits():
    async with rig() as r:
        workflow_id = (await r.submit(tool_step(more="timeout_s: 60"))).workflow_id
        lease = await r.executor.lease_step(TOOLS)
        waiting = asyncio.create_task(r.executor.lease_step(TOOLS, workflow_id=workflow_id))
        await asyncio.sleep(0)
        await r.executor.cancel(workflow_id)
        with pytest.raises(FailedPrecondition, match="ended"):
            await waiting
        with pytest.raises(FailedPrecondition):
            await r.executor.renew_lease(lease.lease_id)
        with pytest.raises(FailedPrecondition, match="lease"):
            await r.executor.complete_step(workflow_id, "tests", "x", lease_id=lease.lease_id)
        with pytest.raises(FailedPrecondition, match="cancelled"):
            await r.executor.complete_step(workflow_id, "tests", "x")
        with pytest.raises(FailedPrecondition, match="ended"):
            await r.executor.lease_step(TOOLS, workflow_id=workflow_id)
        with pytest.raises(NotFound):
            await r.executor.lease_step(TOOLS, workflow_id="wf-none")
        assert_nothing_left(r, workflow_id)
        assert r.executor._desk("").num_waiters == 0


@asynchronous
async def test_stopping_frees_who_waits():
    async with rig() as r:
        waiting = asyncio.create_task(r.executor.lease_step(TOOLS))
        await asyncio.sleep(0)
        await r.executor.stop()
        assert await waiting is None


@asynchronous
async def test_a_step_with_a_problem_fails_at_once(monkeypatch):
    from dataclasses import replace

    hand_out = Run._hand_out
    monkeypatch.setattr(Run, "_hand_out", lambda self, node: replace(hand_out(self, node), problem="args: wrong"))
    async with rig() as r:
        final = await r.run(tool_step(more="retries: {max: 3}"))
        assert (final.state, final.error.status) == ("failed", "FAILED_PRECONDITION")
        assert "args: wrong" in final.error.message
        assert results(final)["tests"].attempt == 1


@asynchronous
async def test_many_steps_and_handlers_that_die_end_once_each():
    yaml = """
version: 1
name: many
messages: {task: "What?"}
steps:
  - {step: tests, for_each: 40, external: {tool: run_tests, lease_s: 0.3}, read: [task], retries: {max: 9}}
outputs: {all: tests}
"""
    async with rig() as r:
        workflow_id = (await r.submit(yaml)).workflow_id
        done: list[str] = []

        async def handler(number: int) -> None:
            mine = 0
            while True:
                try:
                    lease = await r.executor.lease_step(TOOLS, workflow_id=workflow_id, handler=str(number))
                except FailedPrecondition:
                    return
                mine += 1
                if (mine + number) % 4 == 0:
                    continue  # dies over it
                await asyncio.sleep(0.001)
                done.append(lease.address)
                await r.executor.complete_step(
                    workflow_id, lease.address, f"{lease.address} by {number}", lease_id=lease.lease_id
                )

        handlers = [asyncio.create_task(handler(number)) for number in range(6)]
        final = await r.end(workflow_id)
        await asyncio.gather(*handlers)
        assert final.state == "succeeded"
        assert sorted(done) == sorted(step.address for step in final.steps)
        await until(lambda: r.executor._desk("").num_waiters == 0)
        assert_nothing_left(r, workflow_id)
