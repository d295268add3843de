"""The steps of a workflow that goes on: what its run makes ready becomes calls or errands, and what comes of these goes
back into the run. Whatever is raised in here is its execution's to guard.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from laban.actors.calls import CallFinished
from laban.actors.errors import LabanError
from laban.cluster import moves as to
from laban.cluster.attempts import Attempt, choice_problem, kind_of, sampling_of
from laban.cluster.audit.cases import Said
from laban.cluster.board import Board, generated
from laban.cluster.explaining import next_uses
from laban.cluster.external import ExternalSteps
from laban.cluster.messages import MessageBook, Opening
from laban.cluster.moves import Move
from laban.cluster.nested import NestedSteps
from laban.cluster.records import (
    TERMINAL_STEP,
    ErrorInfo,
    LeaseMessage,
    NextUse,
    StepResult,
    StepState,
    WorkflowState,
)
from laban.cluster.slots import CallSink, Order
from laban.cluster.texts import LONG_TEXT
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import ReadyStep
from laban.kvstore.encodings import EncodingId
from laban.kvstore.uses import Use

Outputs = tuple[tuple[str, str], ...]

_IN_VIEW = re.compile(r"view\[(\d+)\]\.(begin|end)")
"""The field of an error about a token range."""


class Calls(Protocol):
    """`cluster.dispatch.Dispatcher`."""

    @property
    def max_attempts(self) -> int: ...

    def submit(self, orders: Iterable[Order]) -> None: ...

    def abort(self, keys: Iterable[str]) -> None: ...


class Course:
    """`attempts` are the open steps, shared with who shows them. Once it is over nothing in here changes anything."""

    def __init__(
        self,
        workflow_id: str,
        run: Run,
        book: MessageBook,
        board: Board,
        nested: NestedSteps,
        attempts: dict[str, Attempt],
        external: ExternalSteps,
        calls: Calls,
        sink: CallSink,
        *,
        seed: int,
        rank: int,
        successors: Callable[[str], Mapping[EncodingId, int] | None],
        put: Callable[[Move], None],
        on_end: Callable[[WorkflowState, Outputs, ErrorInfo | None], None],
    ) -> None:
        """`sink` hears of its calls, `put` takes the moves that its timers make, `on_end` is told once."""
        self.run, self.calls = run, calls
        self.begun: dict[str, ReadyStep] = {}
        self._is_over = False
        self._workflow_id, self._book, self._board = workflow_id, book, board
        self._nested, self._attempts, self._external = nested, attempts, external
        self._sink, self._seed, self._rank, self._successors = sink, seed, rank, successors
        self._put, self._on_end = put, on_end
        self._error: ErrorInfo | None = None

    # What others ask

    def next_uses(self, address: str, uses: Mapping[EncodingId, Use]) -> tuple[NextUse, ...]:
        """When what a step reads will be read next, as far as `uses` say."""
        step = self.begun.get(address)
        return () if step is None else next_uses(step.reads, self._book_of(step), uses)

    def said(self, address: str) -> Said | None:
        """What a step's call read; None if it has none."""
        step = self.begun.get(address)
        if step is None or step.kind != "generate":
            return None
        opening, indices = Opening(step.role, step.name, step.prefill), tuple(read.index for read in step.reads)
        book = self._book_of(step)
        return Said(opening, tuple(book.entries(step.reads)), book.language, book.specs, indices)

    def reads(self, attempt: Attempt) -> tuple[LeaseMessage, ...]:
        return tuple(self._message(read.key) for read in attempt.step.reads)

    def _message(self, key: str) -> LeaseMessage:
        step = self.begun.get(key)
        if step is not None:
            return LeaseMessage(key, step.role, step.name or "", step.prefill + self._board.steps[key].text)
        fixed = self._nested.fixed[key]
        return LeaseMessage(key, fixed.role, fixed.name or "", fixed.text)

    # Texts of external steps

    async def look_over(self, address: str, text: str) -> None:
        """Before a step is answered. Raises what framing it raises. A long text is made into tokens in another
        thread, for when it is applied."""
        step = self.begun.get(address)
        if step is not None:
            await self._book.look_over(step.role, step.prefill + text, step.name)

    async def look_ahead(self, move: Move) -> None:
        """Before a move is applied again."""
        step = self.begun.get(move.address) if isinstance(move, to.Answered) else None
        if not isinstance(move, to.Answered) or len(move.text) <= LONG_TEXT or step is None:
            return
        self.stop_timers()  # what is to happen has been written down
        with suppress(LabanError):  # applying it raises the same
            await self._book.look_ahead(step.role, step.prefill + move.text, step.name)

    def accept(self, address: str, text: str) -> str:
        """Take an answer's text as the step's message. Returns why it will not do, "" if it does."""
        problem = self.run.unfit(address, text)
        if not problem:
            self._give(self.begun[address], text)
        return problem

    def _give(self, step: ReadyStep, text: str) -> None:
        self._book.give(step.address, step.role, step.prefill + text, step.name, path="text")

    # Forward

    def advance(self) -> None:
        """Start whatever is ready; calls that become ready together are ordered together."""
        run = self.run
        orders: list[Order] = []
        while run.state == "running" and not self._is_over and (ready := run.ready()):
            self._take_news()
            for step in ready:
                if run.status(step.address).state == "running":  # a step that failed to begin may have ended it
                    self._begin(step, orders)
        if run.state == "running" and not self._is_over:
            self.calls.submit(orders)
        self.settle()

    def resume(self) -> None:
        """Ask for all that is open again."""
        orders: list[Order] = []
        for attempt in list(self._attempts.values()):
            address = attempt.step.address
            if self._board.steps[address].state == "running":
                attempt.number += 1
                self._board.set_state(address, "ready", attempt=attempt.number)
            if attempt.is_resting:
                self._rest(attempt)
            else:
                self._try(attempt, orders)
        self.calls.submit(orders)
        self.advance()

    def _begin(self, step: ReadyStep, orders: list[Order]) -> None:
        address, task = step.address, step.task
        self.begun[address] = step
        attempt = self._attempts[address] = Attempt(step, self._board.now)
        model = self._book.of(step.model).language.model if step.kind == "generate" else ""
        result = replace(self._board.steps[address], fidelity=step.fidelity, model=model, adapter=step.adapter)
        self._board.steps[address] = result if task is None else replace(result, tool=task.tool, args=task.args)
        self._board.set_state(address, "ready", attempt=1)
        if step.problem:
            self._end_failed(address, ErrorInfo("FAILED_PRECONDITION", step.problem))
        else:
            self._try(attempt, orders)

    def _try(self, attempt: Attempt, orders: list[Order]) -> None:
        """Offer the step to handlers, or add its call to `orders`. What cannot be ordered has failed for good."""
        address, turn = attempt.step.address, attempt.turn + 1
        attempt.begin_turn(self._board.now, lambda: self._put(to.TimedOut(address, turn, attempt.usage.take())))
        if attempt.step.kind == "external":
            self._external.offer(attempt)
            return
        try:
            orders.append(self._order(attempt))
        except LabanError as error:
            self._end_failed(address, _as_told(error, attempt.step))

    def _order(self, attempt: Attempt) -> Order:
        step = attempt.step
        book = self._book_of(step)
        sampling = sampling_of(step, self._seed, book.language, attempt.failures)
        opening = Opening(step.role, step.name, step.prefill)
        key, what = f"{self._workflow_id}/{step.address}", f"step {step.address}"
        call, _ = book.decode(key, what, book.entries(step.reads), opening, sampling, rank=self._rank)
        call = replace(call, kind=kind_of(self._board.name, step))
        attempt.view = call.view
        return Order(call, self._sink, book.specs, attempt.number, self._rank, self._successors(call.namespace))

    def _book_of(self, step: ReadyStep) -> MessageBook:
        """What a step's call sees of the workflow's."""
        return self._book.of(step.model).under(step.adapter)

    # What comes of a step's tries

    def finish(self, address: str, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        """Its call has ended well."""
        step, attempt = self.begun[address], self._attempts[address]
        problem = choice_problem(step, event.text, event.finish_reason) or self.run.unfit(address, event.text)
        if problem:
            self._board.lose(address, event)
            self.try_failed(address, ErrorInfo("FAILED_PRECONDITION", problem))
            return
        self._book.of(step.model).add_encoded(address, step.role, step.name, event.encoding, attempt.view)
        self._book.tell(address, step.role, step.prefill + event.text, step.name)
        result = self._board.steps[address]
        waited_ms = max(waited_ms + attempt.earlier_ms, result.earlier_attempts.wall_ms)
        self.succeed(generated(result, worker_id, event, waited_ms))

    def succeed(self, result: StepResult) -> None:
        """Its message is in the book."""
        address = result.address
        self._close([address])
        self.run.finish(address, result.text)
        self._board.end_step(replace(result, state="succeeded", values=self.run.values(address)))
        self.advance()

    def try_failed(self, address: str, error: ErrorInfo, *, final: bool = False) -> None:
        attempt = self._attempts[address]
        if final or not attempt.may_retry:
            self._end_failed(address, error)
            self.advance()
            return
        attempt.next_try()
        self._board.set_state(address, "ready", attempt=attempt.number)
        self._rest(attempt)

    def _rest(self, attempt: Attempt) -> None:
        address, turn = attempt.step.address, attempt.turn
        attempt.after(attempt.rest_s, lambda: self._put(to.RetryDue(address, turn)))

    def try_again(self, attempt: Attempt) -> None:
        orders: list[Order] = []
        self._try(attempt, orders)
        self.calls.submit(orders)
        self.advance()

    def time_out(self, attempt: Attempt) -> None:
        address = attempt.step.address
        self.recall([address])
        self.try_failed(
            address, ErrorInfo("DEADLINE_EXCEEDED", f"the attempt took longer than {attempt.step.tries.timeout_s:g} s")
        )

    def lose(self, attempt: Attempt, max_losses: int) -> None:
        """The handler of an external step has been silent for too long: the next one's turn."""
        address = attempt.step.address
        attempt.losses += 1
        if attempt.losses >= max_losses:
            why = f"the handler of {address} was lost {attempt.losses} times"
            self.try_failed(address, ErrorInfo("UNAVAILABLE", why))
            return
        attempt.number += 1
        self._board.set_state(address, "ready", attempt=attempt.number)
        self._try(attempt, [])

    def _end_failed(self, address: str, error: ErrorInfo) -> None:
        """The step failed for good; with `on_error: message` what went wrong is its message."""
        step = self.begun[address]
        self._close([address])
        result = replace(self._board.steps[address], state="failed", error=error)
        if step.tries.on_error == "message":
            self._give(step, error.message)
            result = replace(result, text=error.message, finish_reason="error")
        self._board.end_step(result)
        self._error = error
        self.run.fail(address, error.message)

    # To its end

    def stop(self) -> None:
        self.run.cancel()
        self.settle()

    def settle(self) -> None:
        """Take over what the run decided: instances it gave up, and its end."""
        run = self.run
        if self._is_over:
            return
        self._take_news()
        given_up: list[str] = []
        # Whatever is open when a run ends, the run has cancelled.
        for address in run.take_given_up():
            result = self._board.steps[address]
            if result.state not in TERMINAL_STEP:
                if result.state in ("ready", "running"):
                    given_up.append(address)
                status = run.status(address)
                state: StepState = "skipped" if status.state == "skipped" else "cancelled"
                why = ErrorInfo("CANCELLED", status.reason) if status.reason else None
                self._board.end_step(replace(result, state=state, error=why))
        self.recall(given_up)
        self._close(given_up)
        if run.state != "running":
            error = None
            if run.state == "failed":
                # No step failed: an expression could not be evaluated, or a loop did not end in time.
                cause = self._error or ErrorInfo("FAILED_PRECONDITION", "")
                error = ErrorInfo(cause.status, run.error, cause.field)
            self._end(run.state, tuple(run.outputs().items()), error)
        elif not self._attempts:
            raise RuntimeError("the run goes on, but none of its steps does")

    def _take_news(self) -> None:
        self._error = self._nested.take_news(self.run, self._book) or self._error

    def crash(self, error: ErrorInfo) -> None:
        """The run cannot go on: whatever is open is cancelled."""
        open_steps = [result for result in self._board.steps.values() if result.state not in TERMINAL_STEP]
        self.recall(result.address for result in open_steps)
        self._close(list(self._attempts))
        for result in open_steps:
            self._board.end_step(replace(result, state="cancelled"))
        self._end("failed", (), error)

    def _end(self, state: WorkflowState, outputs: Outputs, error: ErrorInfo | None) -> None:
        self._is_over = True
        self._on_end(state, outputs, error)

    def recall(self, addresses: Iterable[str]) -> None:
        """Stop whoever is at these steps."""
        addresses = list(addresses)
        self.calls.abort(f"{self._workflow_id}/{address}" for address in addresses)
        for address in addresses:
            self._external.withdraw(address)

    def _close(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            attempt = self._attempts.pop(address, None)
            if attempt is not None:
                attempt.stop_timer()

    def stop_timers(self) -> None:
        for attempt in self._attempts.values():
            attempt.stop_timer()


def _as_told(error: LabanError, step: ReadyStep) -> ErrorInfo:
    """Why a step's call cannot be ordered. The field is told apart from the message, and the value within it; a place
    in the call's view is the read that put it there."""
    message, field = str(LabanError(error.message, value=error.value)), error.field
    found = _IN_VIEW.fullmatch(field)
    if found is not None:
        read = step.reads[int(found[1])]
        field = f"read[{read.index}].{found[2]}"
        message = f"the read of '{read.key}' {found[2]}s beyond it: {message}"
    return ErrorInfo(error.status, message, field)
