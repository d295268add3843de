"""A workflow's events as a timeline, in the JSON that Perfetto and Chrome's tracing read.

Each worker is a process there, and its steps lie in as many lanes as ran side by side; each step's span holds those of
its queueing, prefill and decode. External steps are with `handlers`. Loads are told as counts: events do not date them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from laban.cluster.records import TERMINAL_WORKFLOW, Event, StepResult

NOWHERE, HANDLERS = "no worker", "handlers"


@dataclass(slots=True)
class _Span:
    """A step instance, from when it was first ready."""

    address: str
    ready_s: float
    running_s: float | None = None
    worker: str = ""
    external: bool = False
    result: StepResult | None = None
    end_s: float = 0.0
    attempts: list[float] = field(default_factory=list)  # when each after the first began

    @property
    def place(self) -> str:
        worker = self.worker if self.result is None else self.result.worker or self.worker
        return HANDLERS if self.external else worker or NOWHERE


def timeline(events: Iterable[Event], now_s: float) -> dict[str, Any]:
    """`now_s` ends what goes on, a time of day."""
    spans: dict[str, _Span] = {}
    begun_s: float | None = None
    ended_s, state, workflow_id = now_s, "running", ""
    for event in events:
        workflow_id = event.workflow_id
        begun_s = event.at if begun_s is None else begun_s
        if event.kind == "workflow_state" and event.workflow_state in TERMINAL_WORKFLOW:
            ended_s, state = event.at, str(event.workflow_state)
        elif event.kind == "step_state":
            _move(spans, event)
        elif event.result is not None and event.result.address in spans:
            spans[event.result.address].result = event.result
            spans[event.result.address].end_s = event.at
    for span in spans.values():
        span.end_s = span.end_s or ended_s
    begun_s = now_s if begun_s is None else begun_s
    return {"displayTimeUnit": "ms", "traceEvents": list(_drawn(workflow_id, state, begun_s, ended_s, spans))}


def _move(spans: dict[str, _Span], event: Event) -> None:
    span = spans.get(event.address)
    if span is None:
        span = spans[event.address] = _Span(event.address, event.at)
    elif event.step_state == "ready":
        span.attempts.append(event.at)
    if event.step_state == "running":
        span.running_s = event.at
    span.worker = event.worker or span.worker
    span.external = span.external or bool(event.tool)


def _drawn(
    workflow_id: str, state: str, begun_s: float, ended_s: float, spans: dict[str, _Span]
) -> Iterator[dict[str, Any]]:
    yield from _named(0, "workflow")
    yield _complete(workflow_id, 0, 0, begun_s, ended_s, {"state": state})
    for pid, place in enumerate(sorted({span.place for span in spans.values()}), 1):
        yield from _named(pid, place)
        lanes: list[float] = []  # when each is free again
        for span in sorted((each for each in spans.values() if each.place == place), key=lambda each: each.ready_s):
            lane = next((at for at, free_s in enumerate(lanes) if free_s <= span.ready_s), len(lanes))
            lanes[lane : lane + 1] = [span.end_s]
            yield from _of_step(span, pid, lane)


def _of_step(span: _Span, pid: int, lane: int) -> Iterator[dict[str, Any]]:
    result = span.result
    about: dict[str, Any] = {"state": "running" if result is None else result.state, "attempts": 1 + len(span.attempts)}
    if result is not None:
        names = ("tokens_read", "tokens_reused", "tokens_loaded", "tokens_encoded", "tokens_generated")
        about |= {"fidelity": result.fidelity, **{name: getattr(result.total, name) for name in names}}
        about |= {"model": result.model} if result.model else {}
    yield _complete(span.address, pid, lane, span.ready_s, span.end_s, about)
    running_s = span.end_s if span.running_s is None else min(span.running_s, span.end_s)
    for at in span.attempts:
        yield {"name": "next attempt", "ph": "i", "s": "t", "ts": round(at * 1e6), "pid": pid, "tid": lane}
    if span.external or span.running_s is None:
        yield _complete("queued", pid, lane, span.ready_s, running_s, {})
        return
    if result is None or result.state != "succeeded":
        yield _complete("queued", pid, lane, span.ready_s, running_s, {})
        yield _complete("running", pid, lane, running_s, span.end_s, {})
        return
    first_s = span.end_s - (result.wall_ms - result.ttft_ms) / 1000.0  # both count from when it was ready
    first_s = min(max(first_s, span.ready_s), span.end_s)
    if running_s < first_s:
        yield _complete("queued", pid, lane, span.ready_s, running_s, {})
        yield _complete("prefill", pid, lane, running_s, first_s, {"tokens": result.tokens_encoded})
    else:  # that it had been admitted was told with its first token
        yield _complete("queue and prefill", pid, lane, span.ready_s, first_s, {"tokens": result.tokens_encoded})
    yield _complete("decode", pid, lane, first_s, span.end_s, {"tokens": result.tokens_generated})


def _named(pid: int, name: str) -> Iterator[dict[str, Any]]:
    yield {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}}
    yield {"name": "process_sort_index", "ph": "M", "pid": pid, "args": {"sort_index": pid}}


def _complete(name: str, pid: int, lane: int, begin_s: float, end_s: float, about: dict[str, Any]) -> dict[str, Any]:
    ts = round(begin_s * 1e6)
    return {
        "name": name,
        "ph": "X",
        "ts": ts,
        "dur": max(0, round(end_s * 1e6) - ts),
        "pid": pid,
        "tid": lane,
        "args": about,
    }
