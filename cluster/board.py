"""What a workflow shows: its state, a result for each step instance, and the feed of events that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from laban.actors.calls import CallFinished
from laban.cluster.feed import Feed
from laban.cluster.records import ErrorInfo, Event, FidelityNote, StepResult, StepState, WorkflowRecord, WorkflowState
from laban.cluster.usage import NO_USAGE, Counts


def generated(result: StepResult, worker_id: str, event: CallFinished, waited_ms: float) -> StepResult:
    """A step's result with what its call made. `waited_ms` is the time before the call was sent to the worker."""
    return replace(
        result,
        text=event.text,
        token_ids=event.generated,
        tokens_read=event.tokens_read,
        tokens_reused=event.tokens_reused,
        tokens_loaded=event.tokens_loaded,
        tokens_encoded=event.tokens_encoded,
        tokens_generated=event.tokens_generated,
        tokens_drafted=event.tokens_drafted,
        tokens_accepted=event.tokens_accepted,
        ttft_ms=event.ttft_ms + waited_ms,
        wall_ms=event.wall_ms + waited_ms,
        worker=worker_id,
        finish_reason=event.finish_reason,
        logprobs=event.logprobs,
    )


def _with_tokens(result: StepResult, counts: Counts) -> StepResult:
    return replace(
        result,
        tokens_read=counts.tokens_read,
        tokens_reused=counts.tokens_reused,
        tokens_loaded=counts.tokens_loaded,
        tokens_encoded=counts.tokens_encoded,
        tokens_generated=counts.tokens_generated,
    )


class Board:
    """Every change of it is an event. `steps` are by address, in the order of the graph.

    `on_change` is told when a step's state has changed; of one that has ended, with its result.
    """

    def __init__(
        self,
        workflow_id: str,
        name: str,
        steps: Sequence[StepResult],
        clock: Callable[[], float],
        on_change: Callable[[StepResult | None], None] = lambda ended: None,
        notes: tuple[FidelityNote, ...] = (),
    ) -> None:
        self.workflow_id = workflow_id
        self.name = name
        self.steps = {step.address: step for step in steps}
        self.feed = Feed(workflow_id)
        self.state: WorkflowState = "running"
        self._clock = clock
        self._on_change = on_change
        self._created_at = clock()
        self._finished_at: float | None = None
        self._outputs: tuple[tuple[str, str], ...] = ()
        self._error: ErrorInfo | None = None
        self.notes = notes
        self.held = ""  # why the workflow is held back whole
        self._ready_at: dict[str, float] = {}  # when steps that have not ended were ready first, a time of day

    @classmethod
    def ended(cls, record: WorkflowRecord, feed: Feed) -> Board:
        """Of a workflow that has ended, as it was shown then."""
        board = cls(record.workflow_id, record.name, record.steps, lambda: record.created_at, notes=record.notes)
        board.feed, board.state, board._finished_at = feed, record.state, record.finished_at
        board._outputs, board._error = record.outputs, record.error
        return board

    @property
    def finished_at(self) -> float | None:
        return self._finished_at

    @property
    def now(self) -> float:
        return self._clock()

    def record(self, *, with_steps: bool = True) -> WorkflowRecord:
        return WorkflowRecord(
            workflow_id=self.workflow_id,
            name=self.name,
            state=self.state,
            created_at=self._created_at,
            finished_at=self._finished_at,
            outputs=self._outputs,
            steps=tuple(self.steps.values()) if with_steps else (),
            error=self._error,
            last_event=self.feed.last_event,
            held=self.held,
            notes=self.notes,
        )

    def add_steps(self, steps: Iterable[StepResult]) -> None:
        """Those of a workflow that a step runs."""
        self.steps.update((step.address, step) for step in steps)

    def begin(self, held: str = "") -> None:
        """It runs from now on, or is `held` back: then `begin` is called again once it is not.

        Held back can also be one that has begun, when the process that ran it is another one.
        """
        at = self._clock() if self.feed.last_event else self._created_at
        self.held = held
        notes = () if self.feed.last_event else self.notes
        self.feed.append(
            Event(0, self.workflow_id, at, "workflow_state", workflow_state="running", held=held, notes=notes)
        )

    def set_state(self, address: str, state: StepState, *, attempt: int, worker: str = "") -> None:
        before = self.steps[address]
        self._ready_at.setdefault(address, self._clock())
        if 0 < before.attempt < attempt:
            before = replace(
                _with_tokens(before, NO_USAGE),
                earlier_attempts=replace(before.total, wall_ms=self._passed_ms(address)),
            )
        step = self.steps[address] = replace(before, state=state, attempt=attempt, worker=worker)
        self.feed.append(
            Event(
                0,
                self.workflow_id,
                self._clock(),
                "step_state",
                address=address,
                attempt=attempt,
                step_state=state,
                worker=worker,
                tool=step.tool,
                args=step.args,
            )
        )
        self._on_change(None)

    def lose(self, address: str, counts: Counts) -> None:
        """The step's attempt has ended without a message: what it came to, as far as is known."""
        self.steps[address] = _with_tokens(self.steps[address], counts)

    def _passed_ms(self, address: str) -> float:
        """Since the step was ready first."""
        return max(0.0, self._clock() - self._ready_at[address]) * 1000.0

    def end_step(self, result: StepResult) -> None:
        """`result.state` is terminal. One that has no message takes its time all the same."""
        if result.state != "succeeded" and result.address in self._ready_at:
            result = replace(result, wall_ms=self._passed_ms(result.address))
        self._ready_at.pop(result.address, None)
        self.steps[result.address] = result
        self.feed.append(Event(0, self.workflow_id, self._clock(), "step_result", result=result))
        self._on_change(result)

    def end(self, state: WorkflowState, outputs: tuple[tuple[str, str], ...], error: ErrorInfo | None) -> None:
        self.state, self._outputs, self._error, self.held = state, outputs, error, ""
        self._finished_at = self._clock()
        self.feed.append(
            Event(
                0,
                self.workflow_id,
                self._finished_at,
                "workflow_state",
                workflow_state=state,
                outputs=outputs,
                error=error,
            )
        )
