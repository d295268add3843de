"""Workflows within workflows, and those that wait, in the executor."""

from __future__ import annotations

from executor_rig import results, rig, until
from executor_workflows import asynchronous

from laban.cluster.workflow.parse import parse_yaml

PARENT = """
version: 1
name: parent
inputs: {topics: {type: list, default: [ants, bees]}}
messages: {doc: "The document."}
steps:
  - {step: research, for_each: topics, workflow: inner.yaml, inputs: {topic: item}, messages: {source: doc}, ON_ERROR}
  - {step: final, read: [doc, research]}
"""
INNER = """
version: 1
name: inner
inputs: {topic: {}}
messages: {source: none, ask: "Of {{ topic }}"}
steps:
  - {step: draft, read: [source, ask]}
  - {step: check, external: {args: {text: draft.text}}, read: [source]}
  - {step: merge, read: [draft, check]}
"""


async def submit(r, on_error: str = "on_error: fail", inner: str = INNER):
    workflow = parse_yaml(PARENT.replace("ON_ERROR", on_error), "parent.yaml", {"inner.yaml": inner})
    return await r.executor.intake.submit(workflow, {})


@asynchronous
async def test_steps_within_are_shown_answered_and_read() -> None:
    async with rig() as r:
        record = await submit(r)
        workflow_id = record.workflow_id
        assert [step.address for step in record.steps][:1] == ["research[1]"]
        address = "research[2]/check"
        await until(lambda: results(r.executor.get(workflow_id)).get(address) is not None)
        await until(lambda: results(r.executor.get(workflow_id))[address].state == "ready")
        for number in (1, 2):
            await until(lambda n=number: results(r.executor.get(workflow_id))[f"research[{n}]/check"].state == "ready")
            await r.executor.complete_step(workflow_id, f"research[{number}]/check", text=f"checked {number}")
        done = await r.end(workflow_id)
        assert (done.state, done.error) == ("succeeded", None)
        steps = results(done)
        assert steps["research[1]"].text == steps["research[1]/merge"].text
        assert steps["research[1]"].finish_reason == "workflow"
        assert steps["research[1]"].wall_ms > 0
        # Its message is the one that its last step made: all of it was there already.
        assert steps["final"].tokens_read > 0


@asynchronous
async def test_a_lease_within_says_what_is_read() -> None:
    async with rig() as r:
        record = await submit(r)
        lease = await r.executor.lease_step(["check"], workflow_id=record.workflow_id, handler="me", wait_s=5.0)
        assert lease is not None
        assert lease.args["text"]
        assert [message.text for message in lease.messages] == ["The document."]
        await r.executor.cancel(record.workflow_id)


@asynchronous
async def test_a_failure_within_may_be_read() -> None:
    async with rig() as r:
        record = await submit(r, "on_error: message")
        for number in (1, 2):
            address = f"research[{number}]/check"
            await until(
                lambda a=address: getattr(results(r.executor.get(record.workflow_id)).get(a), "state", "") == "ready"
            )
            await r.executor.fail_step(record.workflow_id, address, "no luck")
        done = await r.end(record.workflow_id)
        assert done.state == "succeeded"
        step = results(done)["research[2]"]
        assert (step.state, step.finish_reason) == ("failed", "error")
        assert "no luck" in step.text


@asynchronous
async def test_a_message_that_cannot_be_framed_fails_its_step_only() -> None:
    async with rig() as r:
        record = await submit(r, "on_error: message", INNER.replace("Of {{ topic }}", "x" * 100_000))
        done = await r.end(record.workflow_id)
        assert done.state == "succeeded"
        assert {results(done)[f"research[{n}]"].state for n in (1, 2)} == {"failed"}


@asynchronous
async def test_a_run_that_waits_has_nothing_at_the_workers() -> None:
    """Only calls pin pages: what a waiting run has read may leave the pool."""
    async with rig() as r:
        record = await submit(r)
        await until(
            lambda: len([s for s in r.executor.get(record.workflow_id).steps if s.tool and s.state == "ready"]) == 2
        )
        assert r.dispatcher.num_outstanding == 0
        assert not any(step.state == "running" and step.worker for step in r.executor.get(record.workflow_id).steps)
        await r.executor.cancel(record.workflow_id)


@asynchronous
async def test_what_branches_came_to_is_learned() -> None:
    text = """
version: 1
name: learner
steps:
  - {step: a}
  - {step: b, when: "a.text | length > 100000", read: [a]}
  - {step: c, read: [a, b]}
"""
    async with rig() as r:
        before = r.executor.likelihoods.probability("learner", "when(b)")
        await r.run(text)
        assert r.executor.likelihoods.probability("learner", "when(b)") < before
