"""Calls that fail as drawn, all that scripted workers tell of them, and what attempts came to by that alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b

import pytest
from scripted_engine import ScriptedEngine

from laban.actors.calls import CallEvent, CallFailed, CallFinished, CallStarted, CallTokens, WorkerReport
from laban.cluster.records import TERMINAL_STEP, WorkflowRecord
from laban.cluster.usage import Usage
from laban.cluster.workflow.parse import parse_yaml
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow

FLAT = """
version: 1
name: wild
messages: {task: "What?"}
sampling: {seed: 5}
steps:
  - {step: draft, for_each: 3, read: [task], retries: 4, on_error: skip}
  - {step: vote, for_each: 3, read: [task, draft], vote: draft, retries: 2, on_error: message}
  - {step: final, read: [task, draft], retries: 6}
"""
WILD = f"""{FLAT}
  - {{step: within, workflow: inner.yaml, messages: {{source: task}}, on_error: message}}
  - {{step: end, read: [within, final], retries: 2}}
"""
INNER = """
version: 1
name: inner
messages: {source: none, ask: "Of it?"}
steps:
  - {step: look, read: [source, ask], retries: 3}
  - {step: tell, read: [ask, look], retries: 3}
"""


def wild() -> Workflow:
    """With a fan-out, a vote and a workflow within."""
    return parse_yaml(WILD, "wild.yaml", {"inner.yaml": INNER})


class Flaky:
    """While it is in force, some calls fail after some tokens, and some texts will not do: which, `salt` says."""

    def __init__(self, salt: int, *, failing: float = 0.3, unfit: float = 0.3) -> None:
        self._salt, self._failing, self._unfit = salt, failing, unfit
        self.num_reports = 0
        self.told: dict[tuple[str, int], list[CallEvent]] = {}  # by address and attempt

    @contextmanager
    def in_force(self) -> Iterator[Flaky]:
        step = ScriptedEngine.step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ScriptedEngine, "step", lambda engine: self._spoiled(engine, step(engine)))
            patch.setattr(Run, "unfit", lambda run, address, text: "drawn" if self._draw(text) < self._unfit else "")
            yield self

    def of(self, address: str, attempts: Iterable[int]) -> Usage:
        """What these attempts of a step came to, times left out."""
        return replace(Usage.sum(*(self._one(address, attempt) for attempt in attempts)), wall_ms=0.0)

    def _one(self, address: str, attempt: int) -> Usage:
        events = self.told.get((address, attempt), [])
        for event in events:
            if isinstance(event, CallFinished):
                return Usage.sum(event)
        generated = sum(len(event.token_ids) for event in events if isinstance(event, CallTokens))
        for event in events:
            if isinstance(event, CallStarted):
                encoded = event.tokens_encoded if generated else 0
                return Usage(event.tokens_read, event.tokens_reused, event.tokens_loaded, encoded, generated)
        return Usage()

    def _spoiled(self, engine: ScriptedEngine, report: WorkerReport) -> WorkerReport:
        self.num_reports += 1
        events: list[CallEvent] = []
        failed = set()
        for event in report.events:
            address, _, attempt = event.call_id.partition("/")[2].rpartition("#")
            told = self.told.setdefault((address, int(attempt)), [])
            num_tokens = sum(isinstance(each, CallTokens) for each in told)
            is_due = self._fails_after(address, int(attempt)) == num_tokens and not isinstance(event, CallStarted)
            if is_due and event.call_id not in failed:
                failed.add(event.call_id)
                engine.abort(event.call_id)
                events.append(CallFailed(event.call_id, "INTERNAL", "drawn"))
            if event.call_id not in failed:
                told.append(event)
                events.append(event)
        return replace(report, events=tuple(events))

    def _fails_after(self, address: str, attempt: int) -> int | None:
        drawn = self._draw(f"{address}#{attempt}")
        return int(drawn * 1000) % 9 if drawn < self._failing else None

    def _draw(self, text: str) -> float:
        """From 0 to 1."""
        return int.from_bytes(blake2b(f"{self._salt} {text}".encode(), digest_size=4).digest()) / 2**32


def untimed(usage: Usage) -> Usage:
    return replace(usage, wall_ms=0.0)


def assert_accounted(record: WorkflowRecord, flaky: Flaky) -> int:
    """Each step has what its attempts came to. Returns how many had several."""
    assert any(step.attempt for step in record.steps)
    for step in record.steps:
        numbers = range(1, step.attempt + 1)
        assert untimed(step.earlier_attempts) == flaky.of(step.address, numbers[:-1]), step
        if step.state in TERMINAL_STEP - {"cancelled"}:
            assert untimed(step.total) == flaky.of(step.address, numbers), step
            assert 0 <= step.earlier_attempts.wall_ms <= step.wall_ms, step
    return sum(step.attempt > 1 for step in record.steps)
