"""What becomes of steps while others of their workflow fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest
from executor_rig import results, rig, until
from executor_workflows import asynchronous
from scripted_engine import CharFraming, CharTokenizer

from laban.cluster.course import Calls
from laban.cluster.execution import Execution
from laban.cluster.messages import Language, MessageBook
from laban.cluster.records import ErrorInfo
from laban.cluster.replay import Nobody
from laban.cluster.slots import Order
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import Overrides

PARALLEL = """
version: 1
name: parallel
agents: {ann: "You are Ann", bob: "You are Bob", cyd: "You are Cyd"}
messages: {task: "What?"}
steps:
  - {step: answer, for_each: agents, read: [task]}
"""
OUTER = """
version: 1
name: outer
messages: {task: "What?"}
steps:
  - {step: inner, workflow: inner.yaml, on_error: message}
  - {step: human, external: {}, read: [task, inner]}
"""
INNER = """
version: 1
name: inner
messages: {task: "What?"}
steps:
  - {step: slow, external: {timeout_s: 0.05}, read: [task]}
  - {step: bad, external: {}, read: [task]}
"""


class AtOnce(Nobody, Calls):
    """Fails each call while it is being ordered."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[str] = []

    def submit(self, orders: Iterable[Order]) -> None:
        for order in orders:
            self.failed.append(order.key)
            order.sink.call_failed(order.key, order.attempt, ErrorInfo("UNAVAILABLE", "none is up"))


def test_a_workflow_that_ends_while_its_calls_are_ordered_ends_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        run = Run(parse_yaml(PARALLEL), {}, Overrides())
        book = MessageBook(Language(CharFraming(), CharTokenizer(), "test", 1000))
        book.add_fixed(run.messages.values())
        calls, ended = AtOnce(), list[Execution]()
        execution = Execution("wf", "parallel", run, book, calls, Nobody(), seed=1, on_end=ended.append)
        execution.begin()
        assert ended == [execution]
        assert len(calls.failed) == 3
        record = execution.board.record()
        assert (record.state, record.error.status) == ("failed", "UNAVAILABLE")

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert not caplog.records


@asynchronous
async def test_what_a_workflow_within_gave_up_is_over_though_others_go_on() -> None:
    async with rig() as r:
        workflow = parse_yaml(OUTER, "outer.yaml", {"inner.yaml": INNER})
        workflow_id = (await r.executor.intake.submit(workflow, {})).workflow_id
        execution = r.executor.shelf.find(workflow_id)
        assert set(execution._open) == {"inner/slow", "inner/bad"}
        await r.executor.fail_step(workflow_id, "inner/bad", "no", final=True)
        assert set(execution._open) == {"human"}
        await asyncio.sleep(0.1)  # longer than the time limit of what was given up
        await until(lambda: results(r.executor.get(workflow_id))["human"].state == "ready")
        await r.executor.complete_step(workflow_id, "human", text="fine")
        done = await r.end(workflow_id)
        assert (done.state, done.error) == ("succeeded", None)
        assert results(done)["inner/slow"].state == "cancelled"
