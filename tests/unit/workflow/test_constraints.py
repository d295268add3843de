"""Steps whose text is constrained: what is refused, what a call is told, and the values that come of it."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from typing import Any

import pytest

from laban.actors.calls import Constraint
from laban.actors.errors import InvalidInput
from laban.cluster.workflow.constraints import constraint_of, property_names
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.endless_schemas import endless_problem
from laban.cluster.workflow.lint import lint
from laban.cluster.workflow.parse import parse_dict
from laban.cluster.workflow.run import Run

REVIEW = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "verdict": {"enum": ["ok", "revise"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "marks": {"type": "object", "properties": {"style": {"type": "number"}}},
        "not a name": {"type": "string"},
        "text": {"type": "string"},
    },
    "required": ["reason", "verdict", "score"],
    "additionalProperties": False,
}


def document(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": 1, "name": "t", "steps": list(steps), **more}


def paths(data: dict[str, Any]) -> list[str]:
    with pytest.raises(WorkflowErrors) as caught:
        Run(parse_dict(data), {})
    return [str(each) for each in caught.value.diagnostics]


def begun(data: dict[str, Any], inputs: dict[str, Any] | None = None) -> tuple[Run, dict[str, Any]]:
    run = Run(parse_dict(data), inputs or {})
    return run, {step.address: step for step in run.ready()}


def test_a_call_is_told_its_schema_in_the_order_of_its_properties() -> None:
    _, ready = begun(document({"step": "review", "response_schema": {"$schema": "draft", **REVIEW}}))
    constraint = ready["review"].constraint
    assert constraint == Constraint(schema=json.dumps(REVIEW))
    assert list(json.loads(constraint.schema)["properties"]) == list(REVIEW["properties"])


def test_properties_are_values_with_their_types() -> None:
    run, _ = begun(
        document(
            {"step": "review", "response_schema": REVIEW},
            {
                "step": "again",
                "read": ["review"],
                "when": 'review.verdict == "revise" and review.score + 1 == 4 and review.marks["style"] == 0.5',
            },
        )
    )
    text = json.dumps({"reason": "so", "verdict": "revise", "score": 3, "marks": {"style": 0.5}})
    run.finish("review", text)
    assert [step.address for step in run.ready()] == ["again"]
    assert run.values("review") == {"reason": "so", "verdict": "revise", "score": 3, "marks": {"style": 0.5}}


def test_what_was_cut_off_has_no_values() -> None:
    """Not those of an object within it."""
    schema = {"properties": {"verdict": {"type": "string"}, "inner": {"properties": {"verdict": {}}}}}
    run, _ = begun(document({"step": "review", "response_schema": schema}))
    assert run.unfit("review", '{"inner": {"verdict": "no"}, "verdict": "o') == ""
    run.finish("review", '{"inner": {"verdict": "no"}, "verdict": "o')
    assert run.values("review") == {"verdict": None, "inner": None}


def test_a_declared_value_may_be_required_and_made_of_properties() -> None:
    values = {"verdict": {"required": True}, "good": {"expression": "score > 5"}}
    run, _ = begun(document({"step": "review", "response_schema": REVIEW, "values": values}))
    assert run.unfit("review", '{"reason": "a') != ""
    run.finish("review", '{"reason": "a", "verdict": "ok", "score": 7}')
    assert run.values("review") == {"reason": "a", "verdict": "ok", "score": 7, "marks": None, "good": True}


def test_properties_that_no_expression_can_name() -> None:
    assert property_names(REVIEW) == ("reason", "verdict", "score", "marks")
    assert (
        "no value 'note'"
        in paths(document({"step": "a", "response_schema": REVIEW}, {"step": "b", "when": "a.note", "read": ["a"]}))[0]
    )


def test_properties_behind_references_and_alternatives() -> None:
    schema = {
        "$ref": "#/$defs/a~1b",
        "$defs": {"a/b": {"anyOf": [{"properties": {"x": {}}}, {"$ref": "#"}], "properties": {"y": {}}}},
    }
    assert property_names(schema) == ("y", "x")
    assert property_names({"type": "array"}) == ()


def test_a_vote_takes_a_property() -> None:
    ballot = {"properties": {"choice": {"enum": ["1", "2"]}}, "required": ["choice"], "additionalProperties": False}
    run, _ = begun(
        document(
            {"step": "draft", "count": 2},
            {"step": "judge", "count": 3, "read": ["draft[all]"], "response_schema": ballot,
             "vote": {"over": "draft", "value": "choice"}},
            {"step": "ending", "read": ["draft[winner(judge)]"]},
        )
    )  # fmt: skip
    for number in (1, 2):
        run.finish(f"draft[{number}]", f"draft {number}")
    run.ready()
    for number, choice in enumerate("212", 1):
        run.finish(f"judge[{number}]", json.dumps({"choice": choice}))
    assert [read.key for read in run.ready()[0].reads] == ["draft[2]"]


def test_choices_are_given_or_computed() -> None:
    run, ready = begun(
        document(
            {"step": "fixed", "choices": ["no", "no way"]},
            {"step": "given", "choices": "options"},
            {"step": "plan", "response_schema": {"properties": {"next": {"type": "array"}}}},
            {"step": "pick", "choices": "plan.next", "read": ["fixed"]},
            inputs={"options": {"type": "list"}},
        ),
        {"options": ["x", "y"]},
    )
    assert ready["fixed"].constraint == Constraint(choices=("no", "no way"))
    assert ready["given"].constraint == Constraint(choices=("x", "y"))
    run.finish("fixed", "no")
    assert not run.ready()  # it waits for what its choices are made of
    run.finish("plan", '{"next": ["search", "answer"]}')
    assert run.ready()[0].constraint == Constraint(choices=("search", "answer"))


@pytest.mark.parametrize(
    "following", ['{"next": []}', '{"next": ["a", 1]}', '{"next": "ab"}', "{", '{"next": ["a", "a"]}']
)
def test_computed_choices_that_are_none_fail_the_step(following: str) -> None:
    run, _ = begun(
        document(
            {"step": "plan", "response_schema": {"properties": {"next": {}}}}, {"step": "pick", "choices": "plan.next"}
        )
    )
    run.finish("plan", following)
    (step,) = run.ready()
    assert step.problem.startswith("`choices`")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"response_schema": {"type": "strin"}}, "steps[0].response_schema: not a JSON schema"),
        ({"response_schema": {"properties": {"a": {"not": {}}}}}, "properties.a.not: cannot be enforced"),
        ({"response_schema": {"items": {"format": "colour", "type": "string"}}}, "items: Unknown format: colour"),
        ({"response_schema": {"properties": {"a": {"type": "string", "pattern": "("}}}}, "steps[0].response_schema"),
        ({"response_schema": {"$ref": "http://example.org/a"}}, "leads elsewhere"),
        ({"response_schema": {"enum": []}}, "steps[0].response_schema"),
        ({"response_schema": {"x-guidance": {"lenient": True}}}, "x-guidance: cannot be enforced"),
        ({"response_schema": {"minProperties": 1}}, "minProperties: can be enforced with"),
        ({"response_schema": []}, "steps[0].response_schema"),
        ({"choices": []}, "steps[0].choices: 0 texts, expected 1 to 1000"),
        ({"choices": ["a", "b", "a"]}, "steps[0].choices: [2] 'a' is there already, at [0]"),
        ({"choices": ["a", ""]}, "steps[0].choices: [1] is empty"),
        ({"choices": ["a", " b"]}, "begins or ends with white space"),
        ({"choices": ["a", 1]}, "steps[0].choices: [1] expected text"),
        ({"choices": 3}, "steps[0].choices: expected a list of texts"),
        ({"choices": "a +"}, "steps[0].choices: not an expression"),
        ({"choices": "optins"}, "steps[0].choices: unknown variable 'optins'"),
        ({"choices": ["a"], "response_schema": {}}, "keep one"),
        ({"choices": ["a"], "external": {}}, "generates nothing: `choices` has no use"),
        ({"response_schema": {}, "external": {}}, "generates nothing: `response_schema` has no use"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(step: dict[str, Any], said: str) -> None:
    found = paths(document({"step": "a", **step}))
    assert any(said in each for each in found), found


def test_lint_knows_typed_values() -> None:
    good = document({"step": "a", "response_schema": REVIEW}, {"step": "b", "when": "a.score > 3", "read": ["a"]})
    assert not [each for each in lint(parse_dict(good), {}).diagnostics if each.severity == "error"]


ENDLESS = [
    ({"$ref": "#"}, ""),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ""),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, ""),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ""),
    ({"properties": {"a": {"allOf": [{"$ref": "#/properties/a"}]}}}, "properties.a: "),
]
FINITE: list[dict[str, object]] = [
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},  # 5 will do
    {"type": "array", "items": {"$ref": "#"}},
    {"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, "$ref": "#/$defs/n"},
    {
        "type": "object",
        "properties": {"a": {"type": ["null", "object"], "properties": {"b": {"$ref": "#"}}}},
        "required": ["a"],
    },
]


@pytest.mark.parametrize(("schema", "place"), ENDLESS)
def test_a_schema_that_no_text_follows_is_refused(schema: dict[str, object], place: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"response_schema: {place}it holds itself again without an end")):
        constraint_of(schema)


@pytest.mark.parametrize("schema", FINITE)
def test_a_schema_that_may_hold_itself_again_is_taken(schema: dict[str, object]) -> None:
    assert constraint_of(schema) is not None


def test_long_ways_through_references_are_soon_followed() -> None:
    names = [f"d{number}" for number in range(3000)]
    random.Random(3).shuffle(names)
    links = {name: {"$ref": f"#/$defs/{after}"} for name, after in pairwise(names)}
    defs = dict(sorted((links | {names[-1]: {"type": "null"}}).items()))
    assert endless_problem({"$defs": defs, "$ref": f"#/$defs/{names[0]}"}) == ""
    defs[names[-1]] = {"$ref": f"#/$defs/{names[0]}"}
    assert "without an end" in endless_problem({"$defs": defs, "type": "null"})
