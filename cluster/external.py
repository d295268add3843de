"""The external steps of one workflow: offered to handlers, answered under a lease or by hand, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from laban.actors.errors import FailedPrecondition, NotFound
from laban.cluster.answers import Answer, Answers, lease_over
from laban.cluster.attempts import Attempt
from laban.cluster.board import Board
from laban.cluster.lease_desk import LeaseDesk
from laban.cluster.leases import Errand
from laban.cluster.records import ErrorInfo, LeaseMessage


class StepOwner(Protocol):
    """`cluster.execution.Execution`, which guards what it does against its own errors."""

    def accept(self, address: str, text: str) -> str:
        """Take an answer's text as the step's message. Returns why it will not do, "" if it does."""

    def succeed(self, address: str, **changes: object) -> None: ...

    def try_failed(self, address: str, error: ErrorInfo, *, final: bool = False) -> None: ...

    def lose(self, attempt: Attempt) -> None: ...

    def reads(self, attempt: Attempt) -> tuple[LeaseMessage, ...]: ...


class ExternalSteps:
    """Implements LeaseSink. `attempts` are the workflow's open steps, shared with its execution."""

    def __init__(self, board: Board, attempts: Mapping[str, Attempt], desk: LeaseDesk, owner: StepOwner) -> None:
        self._board = board
        self._attempts = attempts
        self._desk = desk
        self._owner = owner
        self._answers = Answers()

    def offer(self, attempt: Attempt) -> None:
        task = attempt.step.task
        assert task is not None, "external steps have tasks"
        self._desk.offer(Errand(self._board.workflow_id, attempt.step.address, attempt.number, task, self))

    def withdraw(self, address: str) -> None:
        """Whoever has the step may stop: a lease of it is void."""
        self._desk.withdraw(self._board.workflow_id, address)

    def end(self) -> None:
        self._desk.end_workflow(self._board.workflow_id)

    def output_schema(self, address: str) -> Mapping[str, object] | None:
        """What the answer of a step that waits for one must follow."""
        attempt = self._attempts.get(address)
        return None if attempt is None or attempt.step.task is None else attempt.step.task.output_schema

    def complete(self, address: str, text: str, lease_id: str) -> None:
        """The step's text. The same again is no error.

        Raises NotFound, FailedPrecondition for a step that is not waiting and a lease that has run out, Conflict for
        another answer than before, and what framing a message raises: the step then waits on.
        """
        answer = Answer("text", text)
        if self._answers.came_before(address, answer, lease_id):
            return
        attempt = self._asked(address, lease_id)
        problem = self._owner.accept(address, text)
        if problem:
            self._fail(address, answer, lease_id, ErrorInfo("FAILED_PRECONDITION", problem))
            return
        self._answers.take(address, answer, lease_id, last=True)
        held = self._desk.leases.find(lease_id)
        handler = "" if held is None else held.handler
        self.withdraw(address)
        self._owner.succeed(address, text=text, finish_reason="external", worker=handler, wall_ms=attempt.passed_ms)

    def fail(self, address: str, message: str, lease_id: str, *, final: bool) -> None:
        """A failed try: whether another follows is for the step's `tries`, and `final`, to say. Errors as above."""
        answer = Answer("error", message)
        if not self._answers.came_before(address, answer, lease_id):
            self._asked(address, lease_id)
            self._fail(address, answer, lease_id, ErrorInfo("FAILED_PRECONDITION", message), final=final)

    def step_leased(self, address: str, handler: str) -> tuple[LeaseMessage, ...]:
        attempt = self._attempts[address]
        self._board.set_state(address, "running", attempt=attempt.number, worker=handler)
        return self._owner.reads(attempt)

    def lease_lost(self, address: str) -> None:
        attempt = self._attempts.get(address)
        if attempt is not None:  # the loss of another lease may have ended the workflow
            self._owner.lose(attempt)

    def _fail(self, address: str, answer: Answer, lease_id: str, error: ErrorInfo, *, final: bool = False) -> None:
        last = final or not self._attempts[address].may_retry
        self._answers.take(address, answer, lease_id, last=last)
        self.withdraw(address)
        self._owner.try_failed(address, error, final=final)

    def _asked(self, address: str, lease_id: str) -> Attempt:
        """The open step that an answer is for; under a lease, if it is that step's."""
        result = self._board.steps.get(address)
        if result is None:
            raise NotFound(f"workflow {self._board.workflow_id} has no such step", field="address", value=address)
        held = self._desk.leases.find(lease_id)
        if lease_id and (held is None or held.errand.key != (self._board.workflow_id, address)):
            raise lease_over(lease_id)
        attempt = self._attempts.get(address)
        if attempt is None or attempt.step.kind != "external":
            kind = "" if attempt is None else f"a {attempt.step.kind} step, "
            raise FailedPrecondition(
                f"the step is {kind}{result.state}, expected an external step that waits for its answer",
                field="address",
                value=address,
            )
        return attempt
