"""What cases said under `exact`, kept in a folder for whoever tells them again: FOLDER/TASK/recordings.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from task_runs import GROUP, Desk, Recording
from tasks import Case, Task

from laban.cluster.audit.records import RecordedStep


def write_or_read(
    desk: Desk, task: Task, cases: Sequence[Case], say: Callable[[int], None], folder: Path | None, at_once: int = GROUP
) -> list[Recording]:
    """As `Desk.write`; of a folder those that are there are read, and the others put there."""
    if folder is None:
        return desk.write(task, cases, say, at_once)
    path = folder / task.name / "recordings.jsonl"
    known = _read(path)
    missing = {_key(case): case for case in cases if _key(case) not in known}
    keys = list(missing)
    for first in range(0, len(keys), at_once):  # put there a group at a time: who is cut off goes on
        group = keys[first : first + at_once]
        say(first)
        found = desk.write(task, [missing[key] for key in group], lambda _: None, at_once)
        written = dict(zip(group, found, strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            for key, recording in written.items():
                file.write(json.dumps({"inputs": key, "steps": [asdict(step) for step in recording]}) + "\n")
        known |= written
    return [known[_key(case)] for case in cases]


def _key(case: Case) -> str:
    return json.dumps(case.inputs, sort_keys=True)


def _read(path: Path) -> dict[str, Recording]:
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        line["inputs"]: tuple(RecordedStep(**{**s, "token_ids": tuple(s["token_ids"])}) for s in line["steps"])
        for line in lines
    }
