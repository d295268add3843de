"""What a watcher knows of a workflow, pieced together from its events and token chunks. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from laban.cluster.records import (
    TERMINAL_STEP,
    TERMINAL_WORKFLOW,
    ErrorInfo,
    Event,
    FidelityNote,
    StepResult,
    TokenChunk,
    WorkflowRecord,
)
from laban.cluster.workflow.names import step_path

SHOWN_ARGS = 200  # characters


@dataclass(slots=True)
class FollowedStep:
    """One instance, as far as its events tell."""

    address: str
    state: str = "waiting"
    attempt: int = 0
    worker: str = ""
    text: str = ""
    num_tokens: int = 0
    result: StepResult | None = None
    tool: str = ""  # an external step's
    args: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Followed:
    """`apply` items in the order they come; attributes are the state after the last one."""

    workflow_id: str = ""
    state: str = "running"
    steps: dict[str, FollowedStep] = field(default_factory=dict)  # by address
    outputs: tuple[tuple[str, str], ...] = ()
    error: ErrorInfo | None = None
    last_event: int = 0
    held: str = ""  # why it is held back whole

    def begin(self, record: WorkflowRecord) -> None:
        """Take the instances, in the graph's order, and the states of those that ended before the watch began."""
        self.workflow_id = record.workflow_id
        for result in record.steps:
            step = self._step(result.address)
            step.state, step.worker = result.state, result.worker
            step.tool, step.args = result.tool, result.args
            if result.state in TERMINAL_STEP:
                step.result = result

    def apply(self, item: Event | TokenChunk) -> bool:
        """Take one item; whether it changed a state (not just a text)."""
        self.workflow_id = self.workflow_id or item.workflow_id
        if isinstance(item, TokenChunk):
            self._add_tokens(item)
            return False
        if item.number <= self.last_event:
            return False  # a watch that resumed too early
        self.last_event = item.number
        if item.kind == "workflow_state":
            self.state = item.workflow_state or self.state
            self.outputs = item.outputs or self.outputs
            self.error = item.error or self.error
            self.held = item.held
        elif item.kind == "step_state":
            step = self._step(item.address)
            if item.attempt != step.attempt:
                step.text, step.num_tokens = "", 0
            step.attempt = item.attempt
            step.state = item.step_state or step.state
            step.worker = item.worker or step.worker
            step.tool, step.args = item.tool, item.args
        elif item.result is not None:
            step = self._step(item.result.address)
            step.result, step.state = item.result, item.result.state
            step.text, step.num_tokens = item.result.text, item.result.tokens_generated
            step.worker = item.result.worker or step.worker
        return True

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_WORKFLOW

    def results(self) -> list[StepResult]:
        """Every instance's result; of one that has not ended, what is known."""
        return [step.result or StepResult(step.address, step.address.partition("[")[0]) for step in self.steps.values()]

    def counts(self) -> dict[str, int]:
        """The number of instances by state."""
        counts: dict[str, int] = {}
        for step in self.steps.values():
            counts[step.state] = counts.get(step.state, 0) + 1
        return counts

    def _add_tokens(self, chunk: TokenChunk) -> None:
        step = self._step(chunk.address)
        if chunk.attempt < step.attempt or step.state in TERMINAL_STEP:
            return  # of an attempt that has been given up
        if chunk.index == 0 or chunk.attempt > step.attempt:
            step.text, step.num_tokens, step.attempt = "", 0, chunk.attempt
        step.text += chunk.text
        step.num_tokens = chunk.index + len(chunk.token_ids)

    def _step(self, address: str) -> FollowedStep:
        return self.steps.setdefault(address, FollowedStep(address))


STEP_KEYS = ("address", "agent", "state", "attempt", "finish_reason", "fidelity", "text", "values", "token_ids",
             "tokens_read", "tokens_reused", "tokens_loaded", "tokens_encoded", "tokens_generated", "ttft_ms",
             "wall_ms", "worker", "model", "adapter", "tokens_drafted", "tokens_accepted", "tool")  # fmt: skip


def document(record: WorkflowRecord) -> str:
    """The JSON document that `--json` prints, on one line."""
    return json.dumps(
        {
            "workflow_id": record.workflow_id,
            "name": record.name,
            "state": record.state,
            "held": record.held,
            "error": _error_object(record.error),
            "outputs": dict(record.outputs),
            "wall_ms": round(record.wall_ms, 3),
            "ttft_ms_sum": round(record.ttft_ms_sum, 3),
            "steps": [_step_object(step) for step in record.steps],
            "notes": [asdict(note) for note in record.notes],
        },
        ensure_ascii=False,
    )


def summary(record: WorkflowRecord) -> dict[str, object]:
    """A workflow without its steps, for lists."""
    return {
        "workflow_id": record.workflow_id,
        "name": record.name,
        "state": record.state,
        "created_at": record.created_at,
        "finished_at": record.finished_at,
    }


def waiting_line(workflow_id: str, address: str, tool: str, args: Mapping[str, object], flag: str = "") -> str:
    """Which tool an external step waits for, and what to type to do without. `flag` names the server.

    >>> waiting_line("wf-1", "ask[2]", "human", {"n": 1})
    'ask[2] waits for the tool human {"n": 1}: laban complete wf-1 "ask[2]" --text ...'
    """
    given = f" {_brief(args)}" if args else ""
    place = f'"{address}"' if "[" in address else address
    return f"{address} waits for the tool {tool}{given}: laban complete {workflow_id} {place} --text ...{flag}"


def _brief(args: Mapping[str, object]) -> str:
    text = json.dumps(dict(args), ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_ARGS else f"{text[:SHOWN_ARGS]}..."


def shown_fidelity(fidelity: str, address: str = "", notes: Iterable[FidelityNote] = ()) -> str:
    """What was known of reuse that is not exact, or that it has not been measured on this workflow.

    >>> shown_fidelity("direct", "answer[2]", [FidelityNote("answer", None, "direct", 0.0412, 120)])
    'direct, KL 0.0412 over 120 audited calls'
    >>> shown_fidelity("direct")
    'direct, unaudited'
    """
    if fidelity in ("exact", ""):
        return fidelity
    step = step_path(address)
    for note in notes:
        if (note.step, note.read, note.level) == (step, None, fidelity) and note.num_calls:
            return f"{fidelity}, KL {note.kl:.3g} over {note.num_calls} audited calls"
    return f"{fidelity}, unaudited"


def chosen_lines(notes: Iterable[FidelityNote]) -> list[str]:
    """Which levels were chosen, and why, a line each.

    >>> chosen_lines([FidelityNote("answer", 1, "direct", 0.04, 120, "within 0.05"), FidelityNote("say")])
    ['answer, read 1: direct, within 0.05']
    """
    lines = []
    for note in notes:
        if note.why:
            read = "" if note.read is None else f", read {note.read}"
            lines.append(f"{note.step or 'all steps'}{read}: {note.level}, {note.why}")
    return lines


def sums(steps: Iterable[StepResult]) -> tuple[int, int, int, int, float, float]:
    """Tokens read, reused, encoded and generated in all attempts; milliseconds to the first token and in all.

    The time of a step that runs a workflow is that of the steps within, which count for themselves.
    """
    read = reused = encoded = generated = 0
    ttft_ms = wall_ms = 0.0
    for step in steps:
        total = step.total
        read += total.tokens_read
        reused += total.tokens_reused
        encoded += total.tokens_encoded
        generated += total.tokens_generated
        ttft_ms += step.ttft_ms
        wall_ms += step.wall_ms if step.finish_reason != "workflow" else 0.0
    return read, reused, encoded, generated, ttft_ms, wall_ms


def in_their_places(steps: Sequence[StepResult]) -> list[StepResult]:
    """Each step of a workflow within behind the step that runs it; else in the order given."""
    places = {step.address: number for number, step in enumerate(steps)}

    def place(step: StepResult) -> list[int]:
        parts = step.address.split("/")
        return [places.get("/".join(parts[: end + 1]), len(places)) for end in range(len(parts))]

    return sorted(steps, key=place)


def _step_object(step: StepResult) -> dict[str, object]:
    values = {key: getattr(step, key) for key in STEP_KEYS}
    values["token_ids"], values["values"] = list(step.token_ids), dict(step.values)
    values["ttft_ms"], values["wall_ms"] = round(step.ttft_ms, 3), round(step.wall_ms, 3)
    values["args"], values["error"] = dict(step.args), _error_object(step.error)
    values["logprobs"] = [{**asdict(each), "top": [list(pair) for pair in each.top]} for each in step.logprobs]
    earlier = step.earlier_attempts
    values["earlier_attempts"] = asdict(replace(earlier, wall_ms=round(earlier.wall_ms, 3)))
    return values


def _error_object(error: ErrorInfo | None) -> dict[str, object] | None:
    """As `--json` has what is refused, without a value."""
    return None if error is None else {"status": error.status, "field": error.field, "message": error.message}
