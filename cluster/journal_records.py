"""What the journal keeps of a workflow: how it was submitted, each of its moves; once it has ended, what it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from laban.actors.errors import InvalidInput
from laban.cluster.answers import Answers
from laban.cluster.board import Board
from laban.cluster.feed import Feed
from laban.cluster.records import Event, FidelityNote, StepResult, WorkflowRecord
from laban.cluster.workflow.parse import parse_dict, to_dict
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import Overrides


@dataclass(frozen=True, slots=True)
class Submission:
    """A workflow as it was accepted. `rank` is its place in the order of submission, `content` a digest of what was
    asked for, `document` all of it as JSON. `namespace` names the model and the tenant's encodings."""

    workflow_id: str
    rank: int
    tenant: str
    idempotency_key: str | None
    content: str
    namespace: str
    max_context: int
    seed: int
    created_at: float
    document: str


@dataclass(frozen=True, slots=True)
class Line:
    """A move as it was written. `number` counts from 1 within a workflow. When it came, `applied` of those before it
    had been applied, and `event` was the number of the workflow's last event: whether a replay is true can be seen."""

    workflow_id: str
    number: int
    at: float
    applied: int
    event: int
    move: str


@dataclass(frozen=True, slots=True)
class Ending:
    """What is left of a workflow that has ended; its moves are not needed any more."""

    workflow_id: str
    state: str
    finished_at: float
    archive: str


@dataclass(frozen=True, slots=True)
class Deletion:
    workflow_id: str


Write = Submission | Line | Ending | Deletion


@dataclass(frozen=True, slots=True)
class Stored:
    """A workflow as it is found. `archive` is empty for one that has not ended, `lines` are for one that has."""

    submission: Submission
    lines: tuple[Line, ...] = ()
    archive: str = ""


def write_document(
    workflow: Workflow,
    inputs: Mapping[str, object],
    overrides: Overrides,
    origin: str = "",
    notes: Sequence[FidelityNote] = (),
) -> str:
    """`origin` is the span that it was submitted in, where that is traced; `notes` say why it has its levels.

    Slow for large ones: call it off the event loop. Raises InvalidInput for what JSON cannot hold.
    """
    changes = [[address, name, value] for (address, name), value in overrides.set.items()]
    document = {
        "workflow": to_dict(workflow),
        "inputs": dict(inputs),
        "overrides": {"fidelity": overrides.fidelity, "seed": overrides.seed, "set": changes},
        **({"origin": origin} if origin else {}),
        **({"notes": [asdict(note) for note in notes]} if notes else {}),
    }
    try:
        return json.dumps(document, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"cannot be kept as JSON: {error}", field="inputs") from None


def read_document(text: str) -> tuple[Workflow, dict[str, Any], Overrides]:
    """Raises ValueError, naming what is missing, or WorkflowErrors for what this version does not understand."""
    document = json.loads(text)
    workflow, inputs, given = (_named(document, name, "the document") for name in ("workflow", "inputs", "overrides"))
    fidelity, seed, listed = (_named(given, name, "overrides") for name in ("fidelity", "seed", "set"))
    try:
        changes = {(address, name): value for address, name, value in listed}
    except (TypeError, ValueError):
        raise ValueError("overrides.set is no list of an address, a name and a value each") from None
    return parse_dict(workflow), inputs, Overrides(fidelity, seed, changes)


def _named(document: Any, name: str, where: str) -> Any:
    if not isinstance(document, dict) or name not in document:
        raise ValueError(f"{where} has no {name}")
    return document[name]


def origin_of(document: str) -> str:
    """The span that a workflow was submitted in; "" if that was not traced."""
    return str(json.loads(document).get("origin", ""))


def notes_of(document: str) -> tuple[FidelityNote, ...]:
    """Why a workflow has its levels, as it was found when it was submitted. Raises ValueError for other notes."""
    try:
        return tuple(FidelityNote(**note) for note in json.loads(document).get("notes", ()))
    except TypeError as error:
        raise ValueError(f"its notes are others: {error}") from None


@dataclass(frozen=True, slots=True)
class Archive:
    """All that can be asked of a workflow that has ended. `addresses` are in the order of its record; the results of
    its steps are those of its events."""

    record: WorkflowRecord
    addresses: tuple[str, ...]
    events: tuple[Event, ...]
    answers: Answers

    @classmethod
    def of(cls, board: Board, answers: Answers) -> Archive:
        return cls(board.record(with_steps=False), tuple(board.steps), tuple(board.feed.events), answers)

    def board(self) -> Board:
        results = {event.result.address: event.result for event in self.events if event.result is not None}
        steps = [results.get(address) or StepResult(address, address.partition("[")[0]) for address in self.addresses]
        return Board.ended(replace(self.record, steps=tuple(steps)), Feed(self.record.workflow_id, self.events))


_ARCHIVE: TypeAdapter[tuple[Archive]] = TypeAdapter(tuple[Archive], config=ConfigDict(ser_json_inf_nan="constants"))


def archive_to_json(archive: Archive) -> str:
    """Slow for large ones: call it off the event loop."""
    return _ARCHIVE.dump_json((archive,)).decode()


def archive_from_json(text: str) -> Archive:
    """Raises ValueError for what no archive was written as."""
    return _ARCHIVE.validate_json(text)[0]
