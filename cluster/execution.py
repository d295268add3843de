"""One workflow on its way: its run's ready steps become calls or errands, what comes of these goes back into the run.

Everything happens in the event loop, between two awaits. What comes from outside becomes a move, which its inbox may
have to write down before it is applied. Whatever goes wrong in here ends the workflow as failed with the error: it
never hangs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from laban.actors.calls import CallFinished, CallStarted, CallTokens
from laban.actors.errors import LabanError
from laban.actors.lasting import going_on
from laban.actors.logs import about
from laban.cluster import moves as to
from laban.cluster.attempts import Attempt, sampling_of
from laban.cluster.audit.cases import Said
from laban.cluster.board import Board, generated
from laban.cluster.explaining import next_uses
from laban.cluster.external import Desk, ExternalSteps
from laban.cluster.inbox import Inbox, MoveLog
from laban.cluster.journal_records import Line
from laban.cluster.messages import MessageBook, Opening
from laban.cluster.moves import Move, move_from_json
from laban.cluster.nested import NestedSteps
from laban.cluster.open_steps import OpenSteps
from laban.cluster.records import (
    TERMINAL_STEP,
    ErrorInfo,
    FidelityNote,
    LeaseMessage,
    NextUse,
    StepResult,
    StepState,
    WorkflowState,
)
from laban.cluster.replay import Nobody
from laban.cluster.slots import Order
from laban.cluster.texts import LONG_TEXT
from laban.cluster.usage import NO_USAGE, Usage
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import ReadyStep
from laban.kvstore.encodings import EncodingId
from laban.kvstore.uses import Use

logger = logging.getLogger(__name__)

StepMove = to.CallBegan | to.CallEnded | to.CallLost | to.Leased | to.LeaseLost
"""About one attempt of one step."""


class Calls(Protocol):
    """`cluster.dispatch.Dispatcher`."""

    @property
    def max_attempts(self) -> int: ...

    def submit(self, orders: Iterable[Order]) -> None: ...

    def abort(self, keys: Iterable[str]) -> None: ...


class Execution:
    """Implements CallSink and StepOwner; the keys of its calls are its step addresses behind the workflow's id."""

    def __init__(
        self,
        workflow_id: str,
        name: str,
        run: Run,
        book: MessageBook,
        dispatcher: Calls,
        desk: Desk,
        *,
        seed: int,
        rank: int = 0,
        clock: Callable[[], float] = time.time,
        created_at: float | None = None,
        notes: tuple[FidelityNote, ...] = (),
        log: MoveLog | None = None,
        on_change: Callable[[Execution, StepResult | None], None] = lambda execution, ended: None,
        successors: Callable[[str], Mapping[EncodingId, int] | None] = lambda namespace: None,
        on_end: Callable[[Execution], None] = lambda execution: None,
    ) -> None:
        """`book` holds the run's fixed messages. `seed` is the workflow's, from which each step's is derived, `rank`
        its place in the order of submission, `created_at` the time of it. Moves are written to `log` first, if there
        is one. `on_change` is told of every step whose state has changed; of one that has ended, with its result.
        `successors` says what later calls will read of a namespace, as for Order."""
        self.workflow_id = workflow_id
        self._at = clock() if created_at is None else created_at  # of the move that is being applied
        steps = [StepResult(each.address, each.step, each.agent) for each in run.instances]
        self.board = Board(workflow_id, name, steps, lambda: self._at, self._changed, notes)
        self.inbox = Inbox(
            workflow_id, self._apply, log=log, clock=clock, last_event=lambda: self.board.feed.last_event
        )
        self._run: Run | None = run
        self._book: MessageBook | None = book
        self._dispatcher = dispatcher
        self._seed = seed
        self._rank = rank
        self._successors = successors
        self._on_change = on_change
        self._on_end = on_end
        self._is_replaying = False
        self._error: ErrorInfo | None = None
        self._steps: dict[str, ReadyStep] = {}
        self._nested = NestedSteps(self.board, run.messages)
        self.decisions: Mapping[str, bool] = {}  # what its branches and loops came to, once it has ended
        self._open: dict[str, Attempt] = {}
        self.progress = OpenSteps(self.board, self._open, self._nested)
        self.external = ExternalSteps(self.board, self._open, desk, self)

    def begin(self) -> None:
        """Start at once, with the submission: no move of its own."""
        self._apply(to.Started(), self._at)

    def start(self) -> None:
        self.inbox.put(to.Started())

    def hold(self, why: str) -> None:
        """Show that it is held back whole. `start` follows, or `resume`, or `cancel`."""
        if not self.board.held:
            self.inbox.put(to.Held(why))

    def resume(self) -> None:
        """Go on after `replay`. What was at a worker or a handler then is done again, as a new attempt."""
        self.inbox.put(to.Resumed())

    def cancel(self) -> None:
        """Stop. Nothing happens to a workflow that has ended."""
        if self._run is not None:
            self.inbox.put(to.Stopped())

    def abandon(self, error: Exception) -> None:
        """Show that it cannot go on here. What is written down stays as it is."""
        self._is_replaying = True
        self._crash(error)

    def leave(self, why: LabanError) -> None:
        """Let go of the workflow as it stands: another process goes on with it. Who watches or waits is told why."""
        self._recall(self._open)
        for attempt in self._open.values():
            attempt.stop_timer()
        self.inbox.close(why)
        self.board.feed.break_off(why)

    def recall_waiting(self) -> None:
        """Take back the calls that no worker has begun."""
        waiting = [address for address in self._open if self.board.steps[address].state == "ready"]
        self._dispatcher.abort(f"{self.workflow_id}/{address}" for address in waiting)

    async def replay(self, lines: Sequence[Line]) -> None:
        """Apply what was written down of a workflow that has just been made again, and is known to nobody yet. Nobody
        hears of it; `start` follows if it has not begun, `resume` if it has and has not ended. Other things go on while
        a long text is made into tokens.

        Raises FailedPrecondition or ValueError for lines that this version cannot bring it forward with.
        """
        live, nobody = (self._dispatcher, self.external.desk), Nobody()
        self._dispatcher, self.external.desk, self._is_replaying = nobody, nobody, True
        try:
            if not lines or not isinstance(move_from_json(lines[0].move), to.Held):
                self.begin()
            await self.inbox.replay(lines, self._look_ahead)
        finally:
            (self._dispatcher, self.external.desk), self._is_replaying = live, False
            for attempt in self._open.values():
                attempt.stop_timer()

    async def _look_ahead(self, move: Move) -> None:
        """Before a move is applied again."""
        step, book = self._steps.get(move.address) if isinstance(move, to.Answered) else None, self._book
        if not isinstance(move, to.Answered) or len(move.text) <= LONG_TEXT or step is None or book is None:
            return
        for attempt in self._open.values():  # what is to happen has been written down
            attempt.stop_timer()
        with suppress(LabanError):  # applying it raises the same
            await book.look_ahead(step.role, step.prefill + move.text, step.name)

    async def look_over(self, address: str, text: str) -> None:
        """Before a step is answered, so that nothing is written down that will not do. Raises what framing it raises:
        InvalidInput, OutOfRange. A long text is made into tokens in another thread, for when it is applied."""
        step, book = self._steps.get(address), self._book
        if step is not None and book is not None:
            await book.look_over(step.role, step.prefill + text, step.name)

    @property
    def has_begun(self) -> bool:
        """Whether it is past being held back."""
        return bool(self.board.feed.last_event) and not self.board.held

    def next_uses(self, address: str, uses: Mapping[EncodingId, Use]) -> tuple[NextUse, ...]:
        """When what a step reads will be read next, as far as `uses` say; nothing once the workflow has ended."""
        step, book = self._steps.get(address), self._book
        return () if step is None or book is None else next_uses(step.reads, _book_of(book, step), uses)

    def begun(self, address: str) -> ReadyStep | None:
        """A step that has begun; None for any other, and once the workflow has ended."""
        return self._steps.get(address)

    @property
    def workflow(self) -> Workflow | None:
        """None once it has ended."""
        return None if self._run is None else self._run.graph.workflow

    def said(self, address: str) -> Said | None:
        """What a step's call read; None if it has none, or the workflow has ended."""
        step, run, book = self._steps.get(address), self._run, self._book
        if step is None or run is None or book is None or step.kind != "generate":
            return None
        opening, indices = Opening(step.role, step.name, step.prefill), tuple(read.index for read in step.reads)
        book = _book_of(book, step)
        return Said(opening, tuple(book.entries(step.reads)), book.language, book.specs, indices)

    # What the dispatcher tells

    def call_requeued(self, key: str, attempt: int) -> None:
        address = self._address(key)
        self.inbox.put(to.CallRequeued(address, attempt, self._taken(address)))

    def call_started(self, key: str, attempt: int, worker_id: str, event: CallStarted) -> None:
        address = self._address(key)
        if address in self._open:
            self._open[address].usage.start(event)
        self.inbox.put(to.CallBegan(address, attempt, worker_id))

    def call_tokens(self, key: str, attempt: int, event: CallTokens) -> None:
        address = self._address(key)
        if address in self._open:
            self._open[address].usage.add(len(event.token_ids))
        self.inbox.behind(partial(self._add_text, address, attempt, event))

    def call_finished(self, key: str, attempt: int, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        address = self._address(key)
        self._taken(address)  # the event says all
        self.inbox.put(to.CallEnded(address, attempt, worker_id, event, waited_ms))

    def call_failed(self, key: str, attempt: int, error: ErrorInfo) -> None:
        address = self._address(key)
        self.inbox.put(to.CallLost(address, attempt, error, self._taken(address)))

    def _taken(self, address: str) -> Usage:
        """What a step's call that has just ended had come to, as far as it was told."""
        return self._open[address].usage.take() if address in self._open else NO_USAGE

    # What the external steps tell

    def leased(self, move: to.Leased) -> None:
        self.inbox.put(move)

    def lease_lost(self, attempt: Attempt) -> None:
        self.inbox.put(to.LeaseLost(attempt.step.address, attempt.number, self._dispatcher.max_attempts))

    # Moves: what they are about may be over by the time they are applied

    def _apply(self, move: Move, at: float) -> None:
        """Raises what an answer that will not do raises. Whatever else goes wrong ends the workflow; in a replay
        it is raised, and what is written down stays as it is."""
        self._at = at
        try:
            self._follow(move)
        except Exception as error:
            is_told = isinstance(error, LabanError) and isinstance(move, to.Answered | to.Refused)
            if is_told or self._is_replaying:
                raise
            self._failed_inside(error)

    def _follow(self, move: Move) -> None:
        match move:
            case to.Held():
                self.board.begin(move.why)
            case to.Started():
                self.board.begin()
                self._guarded(self._advance)
            case to.Resumed():
                self._guarded(self._resume)
            case to.Stopped():
                if self._run is not None:
                    self._run.cancel()
                    self._guarded(self._settle)
            case to.Answered():
                self.external.complete(move)
            case to.Refused():
                self.external.fail(move)
            case to.TimedOut() | to.RetryDue():
                attempt = self._open.get(move.address)
                # A time limit that ran out while the end of its try was being written down is not another failure.
                if attempt is not None and attempt.turn == move.turn:
                    if isinstance(move, to.RetryDue):
                        self._guarded(partial(self._try_again, attempt))
                    elif not attempt.is_resting:
                        self.board.lose(move.address, move.usage)
                        self._guarded(partial(self._time_out, attempt))
            case to.CallRequeued():
                attempt = self._open.get(move.address)
                if attempt is not None and attempt.number < move.attempt:
                    attempt.number = move.attempt
                    self.board.lose(move.address, move.usage)
                    self.board.set_state(move.address, "ready", attempt=move.attempt)
            case _:
                attempt = self._open.get(move.address)
                if attempt is not None and attempt.number == move.attempt:
                    self._apply_to(attempt, move)

    def _apply_to(
        self, attempt: Attempt, move: to.CallBegan | to.CallEnded | to.CallLost | to.Leased | to.LeaseLost
    ) -> None:
        address = move.address
        match move:
            case to.CallBegan():
                self.board.set_state(address, "running", attempt=move.attempt, worker=move.worker)
            case to.Leased():
                self.board.set_state(address, "running", attempt=move.attempt, worker=move.handler)
            case to.CallEnded():
                self._guarded(lambda: self._finish(address, move.worker, move.event, move.waited_ms))
            case to.CallLost():
                self.board.lose(address, move.usage)
                self.try_failed(address, move.error)
            case to.LeaseLost():
                self._guarded(lambda: self._lose(attempt, move.max_losses))

    def _add_text(self, address: str, attempt: int, event: CallTokens) -> None:
        if address in self._open:
            self._guarded(lambda: self.board.feed.add_text(address, attempt, event.token_ids, event.text))

    def _resume(self) -> None:
        """Ask for all that is open again."""
        orders: list[Order] = []
        if self.board.held:
            self.board.begin()
        for attempt in list(self._open.values()):
            address = attempt.step.address
            if self.board.steps[address].state == "running":
                attempt.number += 1
                self.board.set_state(address, "ready", attempt=attempt.number)
            if attempt.is_resting:
                self._rest(attempt)
            else:
                self._try(attempt, orders)
        self._dispatcher.submit(orders)
        self._advance()

    # What comes of external steps

    def accept(self, address: str, text: str) -> str:
        run, book, step = self._run, self._book, self._steps[address]
        assert run is not None
        assert book is not None
        problem = run.unfit(address, text)
        if not problem:
            book.give(address, step.role, step.prefill + text, step.name, path="text")
        return problem

    def succeed(self, address: str, **changes: Any) -> None:
        self._guarded(lambda: self._succeed(replace(self.board.steps[address], **changes)))

    def try_failed(self, address: str, error: ErrorInfo, *, final: bool = False) -> None:
        self._guarded(lambda: self._try_failed(address, error, final=final))

    def reads(self, attempt: Attempt) -> tuple[LeaseMessage, ...]:
        return tuple(self._message(read.key) for read in attempt.step.reads)

    # Steps

    def _advance(self) -> None:
        """Start whatever is ready; calls that become ready together are ordered together."""
        run = self._run
        orders: list[Order] = []
        while run is not None and run.state == "running" and (ready := run.ready()):
            self._take_news(run)
            for step in ready:
                if run.status(step.address).state == "running":  # a step that failed to begin may have ended it
                    self._begin(step, orders)
        if run is not None and run.state == "running":
            self._dispatcher.submit(orders)
        self._settle()

    def _take_news(self, run: Run) -> None:
        book = self._book
        assert book is not None
        self._error = self._nested.take_news(run, book) or self._error

    def _begin(self, step: ReadyStep, orders: list[Order]) -> None:
        address, task = step.address, step.task
        self._steps[address] = step
        attempt = self._open[address] = Attempt(step, self._at)
        result = replace(
            self.board.steps[address], fidelity=step.fidelity, model=self._model_of(step), adapter=step.adapter
        )
        self.board.steps[address] = result if task is None else replace(result, tool=task.tool, args=task.args)
        self.board.set_state(address, "ready", attempt=1)
        if step.problem:
            self._end_failed(address, ErrorInfo("FAILED_PRECONDITION", step.problem))
        else:
            self._try(attempt, orders)

    def _model_of(self, step: ReadyStep) -> str:
        assert self._book is not None
        return self._book.of(step.model).language.model if step.kind == "generate" else ""

    def _try(self, attempt: Attempt, orders: list[Order]) -> None:
        """Offer the step to handlers, or add its call to `orders`. What cannot be ordered has failed for good."""
        address, turn = attempt.step.address, attempt.turn + 1
        attempt.begin_turn(self._at, lambda: self.inbox.put(to.TimedOut(address, turn, attempt.usage.take())))
        if attempt.step.kind == "external":
            self.external.offer(attempt)
            return
        try:
            orders.append(self._order(attempt))
        except LabanError as error:
            # The field is told apart from the message, and the value within it.
            message = str(LabanError(error.message, value=error.value))
            self._end_failed(address, ErrorInfo(error.status, message, error.field))

    def _order(self, attempt: Attempt) -> Order:
        book, step = self._book, attempt.step
        assert book is not None
        book = _book_of(book, step)
        sampling = sampling_of(step, self._seed, book.language, attempt.failures)
        opening = Opening(step.role, step.name, step.prefill)
        key, what = f"{self.workflow_id}/{step.address}", f"step {step.address}"
        call, _ = book.decode(key, what, book.entries(step.reads), opening, sampling, rank=self._rank)
        call = replace(call, kind=f"{self.board.name}/{step.step}")
        attempt.view = call.view
        return Order(call, self, book.specs, attempt.number, self._rank, self._successors(call.namespace))

    def _finish(self, address: str, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        run, book = self._run, self._book
        if run is None or book is None:
            return
        problem = run.unfit(address, event.text)
        if problem:
            self.board.lose(address, event)
            self._try_failed(address, ErrorInfo("FAILED_PRECONDITION", problem))
            return
        step = self._steps[address]
        attempt = self._open[address]
        book.of(step.model).add_encoded(address, step.role, step.name, event.encoding, attempt.view)
        book.tell(address, step.role, step.prefill + event.text, step.name)
        result = self.board.steps[address]
        waited_ms = max(waited_ms + attempt.earlier_ms, result.earlier_attempts.wall_ms)
        self._succeed(generated(result, worker_id, event, waited_ms))

    def _succeed(self, result: StepResult) -> None:
        """Its message is in the book."""
        run, address = self._run, result.address
        if run is None:
            return
        self._close([address])
        run.finish(address, result.text)
        self.board.end_step(replace(result, state="succeeded", values=run.values(address)))
        self._advance()

    def _try_failed(self, address: str, error: ErrorInfo, *, final: bool = False) -> None:
        if self._run is None:
            return
        attempt = self._open[address]
        if final or not attempt.may_retry:
            self._end_failed(address, error)
            self._advance()
            return
        attempt.next_try()
        self.board.set_state(address, "ready", attempt=attempt.number)
        self._rest(attempt)

    def _rest(self, attempt: Attempt) -> None:
        address, turn = attempt.step.address, attempt.turn
        attempt.after(attempt.rest_s, lambda: self.inbox.put(to.RetryDue(address, turn)))

    def _try_again(self, attempt: Attempt) -> None:
        orders: list[Order] = []
        self._try(attempt, orders)
        self._dispatcher.submit(orders)
        self._advance()

    def _time_out(self, attempt: Attempt) -> None:
        address = attempt.step.address
        self._recall([address])
        self._try_failed(
            address, ErrorInfo("DEADLINE_EXCEEDED", f"the attempt took longer than {attempt.step.tries.timeout_s:g} s")
        )

    def _lose(self, attempt: Attempt, max_losses: int) -> None:
        """The handler of an external step has been silent for too long: the next one's turn."""
        address = attempt.step.address
        attempt.losses += 1
        if attempt.losses >= max_losses:
            why = f"the handler of {address} was lost {attempt.losses} times"
            self._try_failed(address, ErrorInfo("UNAVAILABLE", why))
            return
        attempt.number += 1
        self.board.set_state(address, "ready", attempt=attempt.number)
        self._try(attempt, [])

    def _end_failed(self, address: str, error: ErrorInfo) -> None:
        """The step failed for good; with `on_error: message` what went wrong is its message."""
        run, book, step = self._run, self._book, self._steps[address]
        assert run is not None
        assert book is not None
        self._close([address])
        result = replace(self.board.steps[address], state="failed", error=error)
        if step.tries.on_error == "message":
            book.give(address, step.role, step.prefill + error.message, step.name, path="text")
            result = replace(result, text=error.message, finish_reason="error")
        self.board.end_step(result)
        self._error = error
        run.fail(address, error.message)

    def _message(self, key: str) -> LeaseMessage:
        step = self._steps.get(key)
        if step is not None:
            return LeaseMessage(key, step.role, step.name or "", step.prefill + self.board.steps[key].text)
        fixed = self._nested.fixed[key]
        return LeaseMessage(key, fixed.role, fixed.name or "", fixed.text)

    def _settle(self) -> None:
        """Take over what the run decided: instances it gave up, and its end."""
        run = self._run
        if run is None:
            return
        self._take_news(run)
        given_up: list[str] = []
        # Whatever is open when a run ends, the run has cancelled.
        for address in run.take_given_up():
            result = self.board.steps[address]
            if result.state not in TERMINAL_STEP:
                if result.state in ("ready", "running"):
                    given_up.append(address)
                status = run.status(address)
                state: StepState = "skipped" if status.state == "skipped" else "cancelled"
                why = ErrorInfo("CANCELLED", status.reason) if status.reason else None
                self.board.end_step(replace(result, state=state, error=why))
        self._recall(given_up)
        self._close(given_up)
        if run.state != "running":
            outputs = tuple(run.outputs().items())
            error = None
            if run.state == "failed":
                # No step failed: an expression could not be evaluated, or a loop did not end in time.
                cause = self._error or ErrorInfo("FAILED_PRECONDITION", "")
                error = ErrorInfo(cause.status, run.error, cause.field)
            self._end(run.state, outputs, error)
        elif not self._open:
            raise RuntimeError("the run goes on, but none of its steps does")

    def _recall(self, addresses: Iterable[str]) -> None:
        """Stop whoever is at these steps."""
        addresses = list(addresses)
        self._dispatcher.abort(f"{self.workflow_id}/{address}" for address in addresses)
        for address in addresses:
            self.external.withdraw(address)

    def _close(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            attempt = self._open.pop(address, None)
            if attempt is not None:
                attempt.stop_timer()

    def _end(self, state: WorkflowState, outputs: tuple[tuple[str, str], ...], error: ErrorInfo | None) -> None:
        self.decisions = {} if self._run is None else dict(self._run.decisions())
        self._run = self._book = None  # the messages and their encodings are of no use to anyone now
        left = list(self._open)
        self._recall(left)
        self._close(left)
        self._steps.clear()
        self.external.end()
        self.board.end(state, outputs, error)
        if not self._is_replaying:
            self._on_end(self)

    def _changed(self, ended: StepResult | None) -> None:
        """Nothing that comes of it is any onlooker's to stop."""
        if not self._is_replaying:
            with going_on(f"looking on at workflow {self.workflow_id}"):
                self._on_change(self, ended)

    # Guards

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run `action`; whatever it raises ends the workflow."""
        try:
            action()
        except Exception as error:
            self._failed_inside(error)

    def _failed_inside(self, error: Exception) -> None:
        logger.error("the workflow failed inside", exc_info=error, extra=about(workflow=self.workflow_id))
        if self._run is not None:
            self._crash(error)

    def _crash(self, error: Exception) -> None:
        status = error.status if isinstance(error, LabanError) else "INTERNAL"
        message = str(error) if isinstance(error, LabanError) else repr(error)
        open_steps = [result for result in self.board.steps.values() if result.state not in TERMINAL_STEP]
        self._recall(result.address for result in open_steps)
        for result in open_steps:
            self.board.end_step(replace(result, state="cancelled"))
        self._end("failed", (), ErrorInfo(status, message))

    def _address(self, key: str) -> str:
        return key[len(self.workflow_id) + 1 :]


def _book_of(book: MessageBook, step: ReadyStep) -> MessageBook:
    """What a step's call sees of the workflow's."""
    return book.of(step.model).under(step.adapter)
