"""One workflow on its way: what comes from workers, handlers, timers and people becomes what its course does next.

Everything happens in the event loop, between two awaits. What comes from outside becomes a move, which its inbox may
have to write down before it is applied. Whatever goes wrong in here ends the workflow as failed with the error: it
never hangs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from laban.actors.calls import CallFinished, CallStarted, CallTokens
from laban.actors.errors import LabanError
from laban.actors.lasting import going_on
from laban.actors.logs import about
from laban.cluster import moves as to
from laban.cluster.attempts import Attempt
from laban.cluster.audit.cases import Said
from laban.cluster.board import Board
from laban.cluster.course import Calls, Course, Outputs
from laban.cluster.external import Desk, ExternalSteps
from laban.cluster.inbox import Inbox, MoveLog
from laban.cluster.journal_records import Line
from laban.cluster.messages import MessageBook
from laban.cluster.moves import Move, move_from_json
from laban.cluster.nested import NestedSteps
from laban.cluster.open_steps import OpenSteps
from laban.cluster.records import (
    ErrorInfo,
    FidelityNote,
    LeaseMessage,
    NextUse,
    StepResult,
    WorkflowState,
)
from laban.cluster.replay import Nobody
from laban.cluster.usage import NO_USAGE, Usage
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import ReadyStep
from laban.kvstore.encodings import EncodingId
from laban.kvstore.uses import Use

logger = logging.getLogger(__name__)

StepMove = to.CallBegan | to.CallEnded | to.CallLost | to.Leased | to.LeaseLost
"""About one attempt of one step."""


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
        self._dispatcher = dispatcher
        self._on_change = on_change
        self._on_end = on_end
        self._is_replaying = False
        self.decisions: Mapping[str, bool] = {}  # what its branches and loops came to, once it has ended
        attempts: dict[str, Attempt] = {}
        nested = NestedSteps(self.board, run.messages)
        self._open: Mapping[str, Attempt] = attempts
        self.progress = OpenSteps(self.board, attempts, nested)
        self.external = ExternalSteps(self.board, attempts, desk, self)
        self._course: Course | None = Course(
            workflow_id,
            run,
            book,
            self.board,
            nested,
            attempts,
            self.external,
            dispatcher,
            self,
            seed=seed,
            rank=rank,
            successors=successors,
            put=self.inbox.put,
            on_end=self._ended,
        )

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
        if self._course is not None:
            self.inbox.put(to.Stopped())

    def abandon(self, error: Exception) -> None:
        """Show that it cannot go on here. What is written down stays as it is."""
        self._is_replaying = True
        self._crash(error)

    def leave(self, why: LabanError) -> None:
        """Let go of the workflow as it stands: another process goes on with it. Who watches or waits is told why."""
        if self._course is not None:
            self._course.recall(self._open)
            self._course.stop_timers()
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
        course, nobody = self._course, Nobody()
        assert course is not None
        live = course.calls, self.external.desk
        course.calls, self.external.desk, self._is_replaying = nobody, nobody, True
        try:
            if not lines or not isinstance(move_from_json(lines[0].move), to.Held):
                self.begin()
            await self.inbox.replay(lines, course.look_ahead)
        finally:
            (course.calls, self.external.desk), self._is_replaying = live, False
            course.stop_timers()

    async def look_over(self, address: str, text: str) -> None:
        """Before a step is answered, so that nothing is written down that will not do. Raises what framing it raises:
        InvalidInput, OutOfRange. A long text is made into tokens in another thread, for when it is applied."""
        if self._course is not None:
            await self._course.look_over(address, text)

    @property
    def has_begun(self) -> bool:
        """Whether it is past being held back."""
        return bool(self.board.feed.last_event) and not self.board.held

    def next_uses(self, address: str, uses: Mapping[EncodingId, Use]) -> tuple[NextUse, ...]:
        """When what a step reads will be read next, as far as `uses` say; nothing once the workflow has ended."""
        return () if self._course is None else self._course.next_uses(address, uses)

    def begun(self, address: str) -> ReadyStep | None:
        """A step that has begun; None for any other, and once the workflow has ended."""
        return None if self._course is None else self._course.begun.get(address)

    @property
    def workflow(self) -> Workflow | None:
        """None once it has ended."""
        return None if self._course is None else self._course.run.graph.workflow

    def said(self, address: str) -> Said | None:
        """What a step's call read; None if it has none, or the workflow has ended."""
        return None if self._course is None else self._course.said(address)

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
                self._guarded(Course.advance)
            case to.Resumed():
                if self.board.held:
                    self.board.begin()
                self._guarded(Course.resume)
            case to.Stopped():
                self._guarded(Course.stop)
            case to.Answered():
                self.external.complete(move)
            case to.Refused():
                self.external.fail(move)
            case to.TimedOut() | to.RetryDue():
                attempt = self._open.get(move.address)
                # A time limit that ran out while the end of its try was being written down is not another failure.
                if attempt is not None and attempt.turn == move.turn:
                    if isinstance(move, to.RetryDue):
                        self._guarded(partial(Course.try_again, attempt=attempt))
                    elif not attempt.is_resting:
                        self.board.lose(move.address, move.usage)
                        self._guarded(partial(Course.time_out, attempt=attempt))
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
                self._guarded(lambda course: course.finish(address, move.worker, move.event, move.waited_ms))
            case to.CallLost():
                self.board.lose(address, move.usage)
                self.try_failed(address, move.error)
            case to.LeaseLost():
                self._guarded(lambda course: course.lose(attempt, move.max_losses))

    def _add_text(self, address: str, attempt: int, event: CallTokens) -> None:
        if address in self._open:
            self._guarded(lambda _: self.board.feed.add_text(address, attempt, event.token_ids, event.text))

    # What comes of external steps

    def accept(self, address: str, text: str) -> str:
        assert self._course is not None  # the step is open
        return self._course.accept(address, text)

    def succeed(self, address: str, **changes: Any) -> None:
        self._guarded(lambda course: course.succeed(replace(self.board.steps[address], **changes)))

    def try_failed(self, address: str, error: ErrorInfo, *, final: bool = False) -> None:
        self._guarded(lambda course: course.try_failed(address, error, final=final))

    def reads(self, attempt: Attempt) -> tuple[LeaseMessage, ...]:
        assert self._course is not None
        return self._course.reads(attempt)

    # Its end

    def _ended(self, state: WorkflowState, outputs: Outputs, error: ErrorInfo | None) -> None:
        assert self._course is not None
        self.decisions = dict(self._course.run.decisions())
        self._course = None  # the messages and their encodings are of no use to anyone now
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

    def _guarded(self, action: Callable[[Course], None]) -> None:
        """Run `action`, if the workflow goes on; whatever it raises ends it."""
        try:
            if self._course is not None:
                action(self._course)
        except Exception as error:
            self._failed_inside(error)

    def _failed_inside(self, error: Exception) -> None:
        logger.error("the workflow failed inside", exc_info=error, extra=about(workflow=self.workflow_id))
        self._crash(error)

    def _crash(self, error: Exception) -> None:
        status = error.status if isinstance(error, LabanError) else "INTERNAL"
        message = str(error) if isinstance(error, LabanError) else repr(error)
        if self._course is not None:
            self._course.crash(ErrorInfo(status, message))

    def _address(self, key: str) -> str:
        return key[len(self.workflow_id) + 1 :]
