"""One workflow on its way: its run's ready steps become calls, what comes of these goes back into the run.

Everything happens in the event loop, between two awaits. Whatever goes wrong in here ends the workflow as
failed with the error: it never hangs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from laban.actors.calls import CallFinished, CallTokens, Sampling
from laban.actors.errors import Conflict, FailedPrecondition, LabanError, NotFound
from laban.cluster.board import Board
from laban.cluster.dispatch import Dispatcher
from laban.cluster.messages import Language, MessageBook, Opening
from laban.cluster.records import (
    TERMINAL_STEP,
    ErrorInfo,
    StepResult,
    StepState,
    WorkflowState,
)
from laban.cluster.slots import Order
from laban.cluster.views import Entry
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.sampling import instance_seed
from laban.cluster.workflow.states import ReadyStep

logger = logging.getLogger(__name__)


def sampling_of(step: ReadyStep, seed: int, language: Language) -> Sampling:
    """The step's sampling as a call has it; `seed` is the workflow's."""
    spec = step.sampling
    forced = () if spec.forced_text is None else tuple(language.tokenizer.encode(spec.forced_text))
    return Sampling(
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        seed=instance_seed(seed, step.address) if spec.seed is None else spec.seed,
        stop=tuple(spec.stop),
        forced=forced,
        num_logprobs=spec.logprobs,
    )


class Execution:
    """Implements CallSink; the keys of its calls are its step addresses behind the workflow's id."""

    def __init__(
        self,
        workflow_id: str,
        name: str,
        run: Run,
        book: MessageBook,
        dispatcher: Dispatcher,
        *,
        seed: int,
        clock: Callable[[], float] = time.time,
        on_end: Callable[[Execution], None] = lambda execution: None,
    ) -> None:
        """`book` holds the run's fixed messages. `seed` is the workflow's, from which each step's is derived."""
        self.workflow_id = workflow_id
        steps = [StepResult(each.address, each.step, each.agent) for each in run.instances]
        self.board = Board(workflow_id, name, steps, clock)
        self._run: Run | None = run
        self._book: MessageBook | None = book
        self._dispatcher = dispatcher
        self._seed = seed
        self._on_end = on_end
        self._error: ErrorInfo | None = None
        self._steps: dict[str, ReadyStep] = {}
        self._answers: dict[str, tuple[str, str]] = {}  # external steps: how they were answered

    def start(self) -> None:
        self.board.begin()
        self._guarded(self._advance)

    def cancel(self) -> None:
        """Stop. Nothing happens to a workflow that has ended."""
        run = self._run
        if run is not None:
            run.cancel()
            self._guarded(self._settle)

    def complete_step(self, address: str, text: str) -> None:
        """Answer an external step. The same text again is no error.

        Raises NotFound, FailedPrecondition for a step that is not waiting, Conflict for another answer than
        before, and what framing a message raises: the step then waits on.
        """
        if self._answered(address, ("text", text)):
            return
        step = self._waiting_step(address)
        run, book = self._run, self._book
        assert run is not None
        assert book is not None
        book.add_text(address, step.role, step.prefill + text, step.name, path="text")
        self._answers[address] = ("text", text)
        result = replace(self.board.steps[address], text=text, finish_reason="external")

        def finish() -> None:
            self.board.end_step(replace(result, state="succeeded"))
            run.finish(address, text)
            self._advance()

        self._guarded(finish)

    def fail_step(self, address: str, message: str) -> None:
        """Say that an external step failed. Errors as for `complete_step`."""
        if self._answered(address, ("error", message)):
            return
        self._waiting_step(address)
        self._answers[address] = ("error", message)
        self._guarded(lambda: self._fail(address, ErrorInfo("FAILED_PRECONDITION", message)))

    # What the dispatcher tells

    def call_requeued(self, key: str, attempt: int) -> None:
        address = self._address(key)
        self.board.set_state(address, "ready", attempt=attempt)

    def call_started(self, key: str, attempt: int, worker_id: str) -> None:
        self.board.set_state(self._address(key), "running", attempt=attempt, worker=worker_id)

    def call_tokens(self, key: str, attempt: int, event: CallTokens) -> None:
        self.board.feed.add_text(self._address(key), attempt, event.token_ids, event.text)

    def call_finished(self, key: str, attempt: int, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        self._guarded(lambda: self._finish(self._address(key), attempt, worker_id, event, waited_ms))

    def call_failed(self, key: str, attempt: int, error: ErrorInfo) -> None:
        address = self._address(key)
        self.board.steps[address] = replace(self.board.steps[address], attempt=attempt)
        self._guarded(lambda: self._fail(address, error))

    # Steps

    def _advance(self) -> None:
        """Start whatever is ready; calls that become ready together are ordered together."""
        run = self._run
        orders: list[Order] = []
        while run is not None and run.state == "running" and (ready := run.ready()):
            for step in ready:
                if run.state == "running":  # a step that failed to begin may have ended it
                    self._begin(run, step, orders)
        if run is not None and run.state == "running":
            self._dispatcher.submit(orders)
        self._settle()

    def _begin(self, run: Run, step: ReadyStep, orders: list[Order]) -> None:
        address = step.address
        self._steps[address] = step
        self.board.steps[address] = replace(self.board.steps[address], fidelity=step.fidelity)
        self.board.set_state(address, "ready", attempt=1)
        if step.kind == "external":
            return
        try:
            orders.append(self._order(step))
        except LabanError as error:
            # The field is told apart from the message, and the value within it.
            failure = ErrorInfo(error.status, str(LabanError(error.message, value=error.value)), error.field)
            self.board.end_step(replace(self.board.steps[address], state="failed", error=failure))
            self._error = failure
            run.fail(address, failure.message)

    def _order(self, step: ReadyStep) -> Order:
        book = self._book
        assert book is not None
        entries = [Entry(book.messages[read.key], read.fidelity, begin=read.begin, end=read.end) for read in step.reads]
        sampling = sampling_of(step, self._seed, book.language)
        opening = Opening(step.role, step.name, step.prefill)
        call, _ = book.decode(f"{self.workflow_id}/{step.address}", f"step {step.address}", entries, opening, sampling)
        return Order(call, self, book.specs)

    def _finish(self, address: str, attempt: int, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        run, book = self._run, self._book
        if run is None or book is None:
            return
        step = self._steps[address]
        book.add_encoded(address, step.role, step.name, event.encoding)
        self.board.end_step(
            replace(
                self.board.steps[address],
                attempt=attempt,
                state="succeeded",
                text=event.text,
                token_ids=event.generated,
                tokens_read=event.tokens_read,
                tokens_reused=event.tokens_reused,
                tokens_encoded=event.tokens_encoded,
                tokens_generated=event.tokens_generated,
                ttft_ms=event.ttft_ms + waited_ms,
                wall_ms=event.wall_ms + waited_ms,
                worker=worker_id,
                finish_reason=event.finish_reason,
                logprobs=event.logprobs,
            )
        )
        run.finish(address, event.text)
        self._advance()

    def _fail(self, address: str, error: ErrorInfo) -> None:
        run = self._run
        if run is None:
            return
        self.board.end_step(replace(self.board.steps[address], state="failed", error=error))
        self._error = error
        run.fail(address, error.message)
        self._advance()

    def _settle(self) -> None:
        """Take over what the run decided: instances it gave up, and its end."""
        run = self._run
        if run is None:
            return
        given_up: list[str] = []
        # Whatever is open when a run ends, the run has cancelled.
        for address in run.skipped():
            result = self.board.steps[address]
            if result.state not in TERMINAL_STEP:
                if result.state in ("ready", "running"):
                    given_up.append(f"{self.workflow_id}/{address}")
                status = run.status(address)
                state: StepState = "skipped" if status.state == "skipped" else "cancelled"
                why = ErrorInfo("CANCELLED", status.reason) if status.reason else None
                self.board.end_step(replace(result, state=state, error=why))
        self._dispatcher.abort(given_up)
        if run.state != "running":
            outputs = tuple(run.outputs().items())
            error = None
            if run.state == "failed":
                cause = self._error or ErrorInfo("INTERNAL", "")
                error = ErrorInfo(cause.status, run.error, cause.field)
            self._end(run.state, outputs, error)
        elif not any(result.state in ("ready", "running") for result in self.board.steps.values()):
            raise RuntimeError("the run goes on, but none of its steps does")

    def _end(self, state: WorkflowState, outputs: tuple[tuple[str, str], ...], error: ErrorInfo | None) -> None:
        self._run = self._book = None  # the messages and their encodings are of no use to anyone now
        self._steps.clear()
        self.board.end(state, outputs, error)
        self._on_end(self)

    # Guards

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run `action`; whatever it raises ends the workflow."""
        try:
            action()
        except Exception as error:
            logger.exception("workflow %s failed inside", self.workflow_id)
            if self._run is not None:
                self._crash(error)

    def _crash(self, error: Exception) -> None:
        status = error.status if isinstance(error, LabanError) else "INTERNAL"
        message = str(error) if isinstance(error, LabanError) else repr(error)
        open_steps = [result for result in self.board.steps.values() if result.state not in TERMINAL_STEP]
        self._dispatcher.abort(f"{self.workflow_id}/{result.address}" for result in open_steps)
        for result in open_steps:
            self.board.end_step(replace(result, state="cancelled"))
        self._end("failed", (), ErrorInfo(status, message))

    def _answered(self, address: str, answer: tuple[str, str]) -> bool:
        """Whether the step was given this answer before. Raises Conflict if it was given another."""
        before = self._answers.get(address)
        if before is not None and before != answer:
            raise Conflict("the step was answered before, and otherwise", field="address", value=address)
        return before is not None

    def _waiting_step(self, address: str) -> ReadyStep:
        result = self.board.steps.get(address)
        if result is None:
            raise NotFound(f"workflow {self.workflow_id} has no such step", field="address", value=address)
        step = self._steps.get(address)
        if step is None or step.kind != "external" or result.state != "ready":
            kind = "" if step is None else f"a {step.kind} step, "
            raise FailedPrecondition(
                f"the step is {kind}{result.state}, expected an external step that is ready",
                field="address",
                value=address,
            )
        return step

    def _address(self, key: str) -> str:
        return key[len(self.workflow_id) + 1 :]
