"""Constrained text on the default model: workflows with typed values, session calls, and what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from command_line import Cli, document, write
from constrained_cases import problem_with_text

from laban.actors.errors import InvalidInput
from laban.cluster.client import Client
from laban.cluster.client_async import AsyncClient

pytestmark = pytest.mark.e2e

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 30},
        "verdict": {"enum": ["keep", "revise"]},
        "score": {"type": "integer", "minimum": 1, "maximum": 10},
    },
    "required": ["reason", "verdict", "score"],
    "additionalProperties": False,
}
FLOW = f"""\
version: 1
name: checked
inputs: {{labels: {{type: list, default: [print, burn]}}}}
messages: {{task: "Name a colour."}}
steps:
  - {{step: draft, read: [task], sampling: {{max_tokens: 8}}}}
  - {{step: review, read: [task, draft], response_schema: {json.dumps(SCHEMA)}, sampling: {{temperature: 1.0}}}}
  - {{step: label, when: 'review.score >= 1 and review.verdict in ["keep", "revise"]', read: [draft], choices: labels}}
"""


def test_a_workflow_goes_by_typed_values(cli: Cli, address: str) -> None:
    done = cli("run", write(cli, FLOW), "--address", address, "--json")
    assert done.returncode == 0, done.stderr
    _, review, label = document(done.stdout)["steps"]
    assert problem_with_text(SCHEMA, review["text"]) == ""
    assert list(json.loads(review["text"])) == list(SCHEMA["properties"])
    assert label["text"] in ("print", "burn")


def test_lint_says_what_cannot_be_enforced(cli: Cli) -> None:
    done = cli("lint", write(cli, FLOW.replace('"maxLength": 30', '"format": "colour"')))
    assert done.returncode == 2
    assert "response_schema: not a JSON schema to be served: properties.reason: Unknown format: colour" in (
        done.stdout + done.stderr
    )


def test_session_calls_are_constrained_beside_others(address: str) -> None:
    async def play() -> None:
        async with AsyncClient(address) as client, await client.open_session() as session:
            task = await session.prefill("Name a colour.")
            asked: list[dict[str, Any]] = [
                {"response_schema": SCHEMA, "temperature": 1.0, "max_tokens": 120, "seed": seed} for seed in range(3)
            ]
            asked += [{"choices": ["red", "red wine"]}, {"max_tokens": 12}, {"response_schema": {}, "max_tokens": 3}]
            made = await asyncio.gather(*(session.generate(view=[task], **each) for each in asked))
        for record in made[:3]:
            assert record.finish_reason == "stop"
            assert problem_with_text(SCHEMA, record.text) == ""
        assert made[3].text in ("red", "red wine")

    asyncio.run(play())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"response_schema": {"properties": {"a": {"not": {}}}}}, "response_schema"),
        ({"choices": ["a", "a"]}, "choices[1]"),
        ({"choices": []}, "choices"),
        ({"choices": ["a"], "response_schema": {}}, "choices"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_generated(
    address: str, options: dict[str, Any], field: str
) -> None:
    with Client(address) as client, client.open_session() as session:
        task = session.prefill("Name a colour.")
        with pytest.raises(InvalidInput) as caught:
            session.generate(view=[task], **options)
        assert caught.value.field == field
