"""What a journal's tests ask of workflows made at random."""

from __future__ import annotations

from typing import Any

from journal_rig import Server

from laban.cluster.records import Event, WorkflowRecord
from laban.cluster.workflow.states import Overrides

SEED = Overrides(seed=7)
SLOW = """
version: 1
name: slow
sampling: {seed: 5}
messages: {task: "What?"}
steps:
  - {step: a, read: [task]}
  - {step: b, read: [task, a], prefill: SLOW}
  - {step: c, read: [task, a, b]}
outputs: {o: c}
"""


def tools_of(data: dict[str, Any]) -> list[str]:
    """The tools of all external steps: the step's name where none is given."""
    found = {"t"}

    def look(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            look(entry.get("steps", []))
            look(entry.get("otherwise", []))
            if "external" in entry:
                found.add(entry["external"].get("tool") or entry["step"])

    look(data["steps"])
    return sorted(found)


def quickened(data: Any) -> Any:
    """Without waits before retries, and with no time limits that a slow machine could run into."""
    if isinstance(data, dict):
        slow = {"delay_s": 0.001, "timeout_s": 60.0}
        return {key: slow.get(key, quickened(value)) for key, value in data.items()}
    return [quickened(each) for each in data] if isinstance(data, list) else data


def has_races(data: Any) -> bool:
    """Whether who ends first decides anything."""
    if isinstance(data, dict):
        return "join" in data or any(has_races(value) for value in data.values())
    return any(has_races(each) for each in data) if isinstance(data, list) else False


def assert_sound(events: list[Event]) -> None:
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    ended = [event.result.address for event in events if event.result is not None]
    assert len(ended) == len(set(ended)), "a result came twice"


def essence(record: WorkflowRecord) -> object:
    """What does not depend on when things happened. Of one that failed: what had ended by then does."""
    if record.state == "failed":
        return record.state
    steps = sorted((each.address, each.state, each.text, each.token_ids) for each in record.steps)
    return record.state, record.outputs, steps


async def finished(run: Server, workflow_id: str, tools: list[str]) -> tuple[WorkflowRecord, list[Event]]:
    run.handle(tools)
    events = await run.events(workflow_id)
    return run.executor.get(workflow_id), events
