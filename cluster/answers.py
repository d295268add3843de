"""How external steps were answered: which answers will do, and that the same one may come again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from laban.actors.errors import Conflict, FailedPrecondition, InvalidInput
from laban.cluster.workflow.tool_schemas import problem_with


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` is the step's text, or why it failed."""

    kind: Literal["text", "error"]
    text: str


@dataclass(slots=True)
class Answers:
    """Of one workflow. Kept after its end, for those who answer late."""

    last: dict[str, Answer] = field(default_factory=dict)  # by address: what ended the step
    brought: dict[str, tuple[str, Answer]] = field(default_factory=dict)  # by lease: (address, answer)

    def came_before(self, address: str, answer: Answer, lease_id: str) -> bool:
        """Whether this very answer was taken already.

        Raises Conflict if the lease, or for an answer by hand the step, was answered otherwise; FailedPrecondition
        if the step was answered under another lease.
        """
        brought = self.brought.get(lease_id)
        last = self.last.get(address)
        if (address, answer) == brought or answer == last:
            return True
        if brought is None and last is None:
            return False
        if lease_id and brought is None:
            raise lease_over(lease_id)
        raise Conflict("the step was answered before, and otherwise", field="address", value=address)

    def take(self, address: str, answer: Answer, lease_id: str, *, last: bool) -> None:
        """Remember an answer; `last`: it ended the step."""
        if lease_id:
            self.brought[lease_id] = (address, answer)
        if last:
            self.last[address] = answer


def lease_over(lease_id: str) -> FailedPrecondition:
    return FailedPrecondition("the lease has run out", field="lease_id", value=lease_id)


def text_of(output: object) -> str:
    """Text as it is, any other JSON value as JSON, in an order of its own: protobuf's mappings have none.

    >>> text_of("plain"), text_of({"b": [1, None], "a": "é"})
    ('plain', '{"a":"é","b":[1,null]}')
    """
    if isinstance(output, str):
        return output
    return json.dumps(output, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def check_output(schema: Mapping[str, object], text: str | None, output: object) -> None:
    """Raises InvalidInput unless `output`, or the value that `text` is or has as JSON, is what the schema asks for.

    Slow for large values: call it off the event loop.
    """
    value = output if text is None else _parsed(text)
    problem = problem_with(schema, value)
    if problem:
        raise InvalidInput(f"not what the step's output_schema asks for: {problem}", field="output")


def _parsed(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(word: str) -> object:
    raise ValueError(f"{word} is not JSON")
