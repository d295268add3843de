"""The external steps of one workflow: offered to handlers, answered under a lease or by hand, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from laban.actors.errors import FailedPrecondition, NotFound
from laban.cluster.answers import Answer, Answers, lease_over
from laban.cluster.attempts import Attempt
from laban.cluster.board import Board
from laban.cluster.leases import Errand, Leases
from laban.cluster.moves import Answered, Leased, Refused
from laban.cluster.records import ErrorInfo, LeaseMessage


class Desk(Protocol):
    """`cluster.lease_desk.LeaseDesk`."""

    @property
    def leases(self) -> Leases: ...

    def offer(self, errand: Errand) -> None: ...

    def withdraw(self, workflow_id: str, address: str) -> None: ...

    def end_workflow(self, workflow_id: str) -> None: ...


class StepOwner(Protocol):
    """`cluster.execution.Execution`, which guards what it does against its own errors."""

    def accept(self, address: str, text: str) -> str:
        """Take an answer's text as the step's message. Returns why it will not do, "" if it does."""

    def succeed(self, address: str, **changes: object) -> None: ...

    def try_failed(self, address: str, error: ErrorInfo, *, final: bool = False) -> None: ...

    def leased(self, move: Leased) -> None: ...

    def lease_lost(self, attempt: Attempt) -> None: ...

    def reads(self, attempt: Attempt) -> tuple[LeaseMessage, ...]: ...


class ExternalSteps:
    """Implements LeaseSink. `attempts` are the workflow's open steps, shared with its execution.

    What handlers say is checked as it comes, becomes a move, and changes something only when that is applied.
    """

    def __init__(self, board: Board, attempts: Mapping[str, Attempt], desk: Desk, owner: StepOwner) -> None:
        self._board = board
        self._attempts = attempts
        self.desk = desk
        self._owner = owner
        self.answers = Answers()

    def offer(self, attempt: Attempt) -> None:
        task = attempt.step.task
        assert task is not None, "external steps have tasks"
        self.desk.offer(Errand(self._board.workflow_id, attempt.step.address, attempt.number, task, self))

    def withdraw(self, address: str) -> None:
        """Whoever has the step may stop: a lease of it is void."""
        self.desk.withdraw(self._board.workflow_id, address)

    def end(self) -> None:
        self.desk.end_workflow(self._board.workflow_id)

    def output_schema(self, address: str) -> Mapping[str, object] | None:
        """What the answer of a step that waits for one must follow."""
        attempt = self._attempts.get(address)
        return None if attempt is None or attempt.step.task is None else attempt.step.task.output_schema

    def completed(self, address: str, text: str, lease_id: str) -> Answered | None:
        """The move that the step's text is; None for the same text again. What framing the text raises is the
        execution's to say, before the move is written down (`look_over`).

        Raises NotFound, FailedPrecondition for a step that is not waiting and a lease that has run out, Conflict for
        another answer than before.
        """
        if self.answers.came_before(address, Answer("text", text), lease_id):
            return None
        attempt = self._asked(address, lease_id)
        held = self.desk.leases.find(lease_id)
        return Answered(address, attempt.number, text, lease_id, "" if held is None else held.handler)

    def failed(self, address: str, message: str, lease_id: str, *, final: bool) -> Refused | None:
        """The move that a failed try is: whether another follows is for the step's `tries`, and `final`, to say.
        Errors as above."""
        if self.answers.came_before(address, Answer("error", message), lease_id):
            return None
        return Refused(address, self._asked(address, lease_id).number, message, lease_id, final)

    def complete(self, move: Answered) -> None:
        """Raises as `completed` does, and what framing a message raises: the step then waits on."""
        address, answer = move.address, Answer("text", move.text)
        if self.answers.came_before(address, answer, move.lease_id):
            return
        attempt = self._still_asked(move)
        problem = self._owner.accept(address, move.text)
        if problem:
            self._fail(address, answer, move.lease_id, ErrorInfo("FAILED_PRECONDITION", problem))
            return
        self.answers.take(address, answer, move.lease_id, last=True)
        self.withdraw(address)
        wall_ms = attempt.passed_ms(self._board.now)
        self._owner.succeed(address, text=move.text, finish_reason="external", worker=move.handler, wall_ms=wall_ms)

    def fail(self, move: Refused) -> None:
        """Raises as `failed` does."""
        answer = Answer("error", move.message)
        if not self.answers.came_before(move.address, answer, move.lease_id):
            self._still_asked(move)
            error = ErrorInfo("FAILED_PRECONDITION", move.message)
            self._fail(move.address, answer, move.lease_id, error, final=move.final)

    def step_leased(self, address: str, handler: str) -> tuple[LeaseMessage, ...]:
        attempt = self._attempts[address]
        self._owner.leased(Leased(address, attempt.number, handler))
        return self._owner.reads(attempt)

    def lease_lost(self, address: str) -> None:
        attempt = self._attempts.get(address)
        if attempt is not None:  # the loss of another lease may have ended the workflow
            self._owner.lease_lost(attempt)

    def _fail(self, address: str, answer: Answer, lease_id: str, error: ErrorInfo, *, final: bool = False) -> None:
        last = final or not self._attempts[address].may_retry
        self.answers.take(address, answer, lease_id, last=last)
        self.withdraw(address)
        self._owner.try_failed(address, error, final=final)

    def _still_asked(self, move: Answered | Refused) -> Attempt:
        """The open step that an answer was for when it came; what came before it may have changed that."""
        attempt = self._attempts.get(move.address)
        if attempt is None:
            state = self._board.steps[move.address].state
            raise FailedPrecondition(f"the step is {state} by now", field="address", value=move.address)
        if move.lease_id and attempt.number != move.attempt:
            raise lease_over(move.lease_id)
        return attempt

    def _asked(self, address: str, lease_id: str) -> Attempt:
        """The open step that an answer is for; under a lease, if it is that step's."""
        result = self._board.steps.get(address)
        if result is None:
            raise NotFound(f"workflow {self._board.workflow_id} has no such step", field="address", value=address)
        held = self.desk.leases.find(lease_id)
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
