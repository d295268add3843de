"""JSON schemas of tools: what they refuse, and that neither schema nor value can make the check hang or fetch."""

from __future__ import annotations

import time

import pytest

from laban.cluster.workflow.tool_schemas import check_schema, problem_with

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "uniqueItems": True},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
    },
    "patternProperties": {"^x-": {"type": "string"}},
    "required": ["n"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "properties": {"name": {"type": "string"}}}},
}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"n": 1, "x-a": "b", "code": "AB", "items": [{"name": "a"}, {}]}, ""),
        ({"n": 1.0}, ""),
        ({}, "'n' is a required property"),
        ({"n": "x"}, "n: 'x' is not of type 'integer'"),
        ({"n": 1, "items": [{}, {"name": 3}]}, "items[1].name: 3 is not of type 'string'"),
        ({"n": 1, "items": [{"name": "a"}, {"name": "a"}]}, "items: item 1 was there before"),
        ({"n": 1, "code": "abc"}, "code: 'abc' does not match '^[A-Z]{2}$'"),
        ({"n": 1, "x-a": 3}, "x-a: 3 is not of type 'string'"),
        ({"n": 1, "y": 3}, "'y': no such property, expected 'n', 'items', 'code'"),
        ("text", "'text' is not of type 'object'"),
    ],
)
def test_values(value: object, problem: str) -> None:
    assert check_schema(SCHEMA) == ""
    found = problem_with(SCHEMA, value)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "text"}, "type: 'text' is not valid"),
        ({"properties": 3}, "properties: 3 is not of type 'object'"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "the pattern '(?=x)' cannot be used"),
        ({"patternProperties": {"(a": {}}}, "the pattern '(a' cannot be used"),
        ({"$ref": "http://127.0.0.1:1/schema.json"}, "$ref 'http://127.0.0.1:1/schema.json' leads elsewhere"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "$ref '#/$defs/b' leads nowhere"),
        ({"$id": "http://127.0.0.1:1/"}, "$id has no use"),
        ({"unevaluatedProperties": False, "patternProperties": {"a": {}}}, "unevaluatedProperties together"),
    ],
)
def test_what_is_no_schema(schema: dict[str, object], problem: str) -> None:
    assert check_schema(schema).startswith(problem)


def test_names_that_look_like_keywords() -> None:
    assert check_schema({"properties": {"pattern": {"type": "string"}, "$ref": {}}, "const": {"$schema": "x"}}) == ""


def test_a_reference_that_is_not_to_be_had_is_not_fetched() -> None:
    assert "cannot be checked" in problem_with({"$ref": "http://127.0.0.1:1/schema.json"}, 1)


@pytest.mark.parametrize("schema", [{}, {"$schema": "http://json-schema.org/draft-07/schema#"}])
@pytest.mark.parametrize("keyword", ["pattern", "patternProperties", "additionalProperties"])
def test_patterns_do_not_backtrack(schema: dict[str, object], keyword: str) -> None:
    evil, text = "^(a+)+$", "a" * 5000 + "b"
    part = {"pattern": evil} if keyword == "pattern" else {"patternProperties": {evil: {}}, keyword: {evil: {}}}
    value: object = text if keyword == "pattern" else {text: 1}
    began = time.monotonic()
    problem_with({"items": {**schema, **part}}, [value])
    assert time.monotonic() - began < 1.0


def test_depth_and_length_are_bounded() -> None:
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    assert "nested too deep" in problem_with({"items": {"$ref": "#"}}, deep)
    assert "nested too deep" in problem_with({"$ref": "#"}, 1)
    schema: dict[str, object] = {}
    for _ in range(100):
        schema = {"not": schema}
    assert "nested too deep" in check_schema(schema)
    assert len(problem_with({"type": "string"}, list(range(10_000)))) < 400
