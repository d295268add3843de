"""Moves are applied one after the other, each as itself, whatever applying the others raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from executor_workflows import CHAIN, asynchronous, tool_step
from journal_rig import MemoryStore, server

from laban.actors.errors import Conflict, LabanError
from laban.cluster import moves as to
from laban.cluster.inbox import Inbox
from laban.cluster.journal_records import Line
from laban.cluster.moves import Move

CHAIN_OF = CHAIN.replace("question: {type: string}", "question: {default: why}")


class Log:
    """What has been put down is written one by one, by the test."""

    def __init__(self) -> None:
        self.thens: list[Callable[[], None]] = []

    def append(self, line: Line, then: Callable[[], None]) -> None:
        self.thens.append(then)

    def write(self) -> None:
        self.thens.pop(0)()


@pytest.mark.parametrize("breaks", ["move", "action", "done"])
def test_what_is_behind_a_move_is_done_and_no_move_is_taken_for_another(breaks: str, caplog) -> None:
    log, done, told = Log(), [], []

    def apply(move: Move, at: float) -> None:
        done.append(move.kind)
        if breaks == "move" and move.kind == "held":
            raise RuntimeError("move is broken")

    def tell(error: LabanError | None) -> None:
        told.append(error)
        if breaks == "done":
            raise RuntimeError("done is broken")

    def act(name: str) -> None:
        done.append(name)
        if breaks == "action":
            raise RuntimeError("action is broken")

    inbox = Inbox("wf", apply, log=log, clock=lambda: 0.0)
    inbox.put(to.Held("no room"), tell)
    for name in ("text", "more text"):
        inbox.behind(lambda name=name: act(name))
    inbox.put(to.Started())
    inbox.behind(lambda: act("last text"))
    inbox.put(to.Stopped())
    for _ in range(3):
        log.write()
    assert done == ["held", "text", "more text", "started", "last text", "stopped"]
    assert [str(error) for error in told] == [
        "an internal error; the server's log says more" if breaks == "move" else "None"
    ]
    assert f"RuntimeError: {breaks} is broken" in caplog.text
    inbox.behind(lambda: act("at once"))
    assert done[-1] == "at once"


@asynchronous
async def test_a_move_that_cannot_be_applied_fails_its_workflow_and_no_other(caplog) -> None:
    async with server(MemoryStore()) as first:
        first.worker.paused = True
        broken, whole = [(await first.submit(CHAIN_OF)).workflow_id for _ in range(2)]
        board = first.executor.shelf.find(broken).board
        set_state = board.set_state

        def refuse(address: str, state: str, **changes: object) -> None:
            if state == "running":
                raise KeyError("no place for it")
            set_state(address, state, **changes)

        board.set_state = refuse
        first.worker.resume()
        ended = (await first.events(broken))[-1]
        assert (ended.workflow_state, ended.error.status) == ("failed", "INTERNAL")
        assert "no place for it" in ended.error.message
        assert "the workflow failed inside" in caplog.text
        assert (await first.events(whole))[-1].workflow_state == "succeeded"


@asynchronous
async def test_an_answer_that_breaks_something_fails_the_workflow_and_one_that_will_not_do_is_told(monkeypatch) -> None:
    async with server(MemoryStore()) as first:
        workflow_id = (await first.submit(tool_step())).workflow_id
        external = first.executor.shelf.find(workflow_id).external

        def conflicting(*_: object, **__: object) -> None:
            raise Conflict("it was answered otherwise")

        with monkeypatch.context() as patched:
            patched.setattr(external, "complete", conflicting)
            with pytest.raises(Conflict, match="otherwise"):
                await first.executor.complete_step(workflow_id, "tests", "3 passed")
        assert first.executor.get(workflow_id).state == "running"
        monkeypatch.setattr(external, "_still_asked", lambda move: 1 / 0)
        record = await first.executor.complete_step(workflow_id, "tests", "3 passed")
        assert (record.state, record.error.status) == ("failed", "INTERNAL")
