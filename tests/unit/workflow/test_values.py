"""Values found in texts: what each rule finds, what types make of it, and that no text or pattern takes long."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from laban.cluster.workflow.schema import Value
from laban.cluster.workflow.values import MAX_MATCHES, code_of, find_values


def find(text: str, name: str = "v", **rule: Any) -> object:
    found, problem = find_values({name: Value.model_validate(rule)}, text)
    assert problem == ""
    return found[name]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("verdict", "Good work.\nVerdict: ok", "ok"),
        ("verdict", "verdict = ok", "ok"),
        ("verdict", "**Verdict:** OK.", "OK"),
        ("verdict", "- **Verdict**: `ok`;", "ok"),
        ("verdict", "verdict: no\nverdict: yes", "no"),
        ("verdict", "verdict:\nVERDICT: yes", "yes"),
        ("verdict", '{"verdict": "ok", "why": "it: works"}', "ok"),
        ("verdict", 'So:\n```json\n{"verdict": "ok"}\n```\nverdict: bad', "ok"),
        ("verdict", 'It is {"verdict": "ok"}, I say.', "ok"),
        ("verdict", '{"verdict": true}', True),
        ("verdict", "verdict: False", False),
        ("score", "Score: 8", 8),
        ("score", "score: 2.5", 2.5),
        ("score", "score: 8/10", "8/10"),
        ("score", "score: NaN", "NaN"),
        ("verdict", 'not json {"verdict": \n"verdict": "ok",', "ok"),
        ("risk_level", "## Risk level: high", "high"),
        ("risk_level", "risk-level: high", "high"),
        ("verdict", "My verdict: ok", "ok"),
        ("verdict", "verdicts: ok", None),
        ("verdict", "verdict", None),
        ("verdict", "", None),
    ],
)
def test_a_name_alone_finds_what_follows_it(name: str, text: str, found: object) -> None:
    assert find(text, name) == found


@pytest.mark.parametrize(
    ("rule", "text", "found"),
    [
        ({"regex": r"score (\d+)"}, "score 7, score 8", "7"),
        ({"regex": r"score \d+"}, "score 7, score 8", "score 7"),
        ({"regex": r"score (\d+)", "all": True}, "score 7, score 8", ["7", "8"]),
        ({"regex": r"(?P<w>\w) (?P<v>\w)"}, "a b", "b"),
        ({"regex": r"a(b)?"}, "a ab", "b"),
        ({"regex": r"\d+", "type": "integer", "all": True}, "1 and 02", [1, 2]),
        ({"regex": "x"}, "é" * 100, None),
        ({"pointer": "/a/1/b~1c"}, '{"a": [0, {"b/c": 2.5}]}', 2.5),
        ({"pointer": ""}, "[1, 2]", [1, 2]),
        ({"pointer": "/a"}, '{"a": false}', False),
        ({"pointer": "/a/b"}, '{"a": 3}', None),
        ({"pointer": "/2"}, "[1, 2]", None),
        ({"pointer": "/a", "type": "string"}, '{"a": {"b": 1}}', '{"b": 1}'),
        ({"pointer": "/a", "one_of": ["ok", "bad"]}, '{"a": "OK then"}', "ok"),
        ({"pointer": "/a", "one_of": ["ok", "bad"]}, '{"a": "maybe"}', None),
        ({"expression": "text | length"}, "four", 4),
        ({"expression": "text | length > 9"}, "four", False),
        ({"expression": "text", "type": "integer"}, "7 of 10", 7),
        ({"one_of": ["bug", "question"]}, "A question, not a bug.", "question"),
        ({"one_of": ["bug", "question"]}, "unbugged\nv: Bug", "bug"),
        ({"one_of": ["a", "b"], "all": True}, "b a c", ["b", "a"]),
        ({"one_of": ["ok", "OK"]}, "OK", "OK"),
        ({"one_of": ["C", "C++"], "all": True}, "C++, C", ["C++", "C"]),
        ({"one_of": ["s", "k"], "all": True}, "ſ K", ["s", "k"]),
        ({"one_of": ["ok"]}, "okay", None),
        ({"default": "x"}, "nothing", "x"),
    ],
)
def test_rules(rule: dict[str, Any], text: str, found: object) -> None:
    assert find(text, **rule) == found


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("integer", "7/10", 7),
        ("integer", "about 8", 8),
        ("integer", "3.0", 3),
        ("integer", "3.5", None),
        ("integer", "1e400", None),
        ("integer", "9" * 400, None),
        ("number", "-2.5e1 m", -25.0),
        ("number", "none", None),
        ("number", "8/10", 8),
        ("number", "p = .85", 0.85),
        ("number", "-.5e1", -5.0),
        ("number", "No.5", 5),
        ("number", "\u22123.5 degrees", -3.5),
        ("number", "$1,250.50 a month", 1250.5),
        ("number", "12,345,678", 12345678),
        ("number", "1,2345", 1),
        ("number", "9" * 20, 1e20),
        ("integer", "\u22125", -5),
        ("integer", "1,250", 1250),
        ("integer", "3, 4", 3),
        ("boolean", "Yes, it does", True),
        ("boolean", "false", False),
        ("boolean", "noted", None),
        ("list", "3 > 1 > 2", [3, 1, 2]),
        ("list", "bob, ann; cleo.", ["bob", "ann", "cleo"]),
        ("list", '["a b", 2]', ["a b", 2]),
        ("list", ",;", None),
        ("string", "as it is", "as it is"),
    ],
)
def test_types(kind: str, text: str, found: object) -> None:
    assert find(f"v: {text}", type=kind) == found
    assert type(find(f"v: {text}", type=kind)) is type(found)


def test_values_are_found_in_order_and_may_use_those_before() -> None:
    declared = {
        "score": Value(type="number"),
        "good": Value(expression="score is not none and score > 5"),
        "word": Value(expression="'good' if good else 'bad'"),
    }
    assert find_values(declared, "score: 7") == ({"score": 7.0, "good": True, "word": "good"}, "")
    assert find_values(declared, "")[0] == {"score": None, "good": False, "word": "bad"}


def test_what_makes_a_text_unfit() -> None:
    _, problem = find_values({"v": Value(required=True)}, "w: 3")
    assert problem == "the text has no value 'v' (got 'w: 3')"
    _, problem = find_values({"v": Value(required=True, type="integer")}, " three", "v:")
    assert problem == "the text has no value 'v' (got 'v: three')"
    _, problem = find_values({"v": Value(required=True)}, "w " * 5000)
    assert len(problem) < 250
    _, problem = find_values({"v": Value(expression="text > 3")}, "x")
    assert problem.startswith("the value 'v': ")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```py\nx = 1\n\ny = 2\n```\nand\n```\nz\n```", "x = 1\n\ny = 2"),
        ("```\nx = 1", "x = 1"),
        ("```x = 1```", "x = 1"),
        ("x = 1", "x = 1"),
        ("", ""),
    ],
)
def test_code_is_the_first_fenced_block(text: str, code: str) -> None:
    assert code_of(text) == code


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"regex": "a", "pointer": "/a"}, "keep one"),
        ({"regex": "("}, "not a regular expression"),
        ({"regex": r"(a)\1"}, "not a regular expression"),
        ({"regex": "((a{1000}){1000}){1000}"}, "not a regular expression"),
        ({"pointer": "a"}, "starts with /"),
        ({"expression": "1 +"}, "not an expression"),
        ({"all": True}, "`all` goes with"),
        ({"required": True, "default": 1}, "keep `required` or `default`"),
    ],
)
def test_rules_that_mean_nothing(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Value.model_validate(rule)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"v": NaN}', {"pointer": "/v"}),
        ('{"v": 1e999}', {"pointer": "/v"}),
        (f'{{"v": {"9" * 400}}}', {"pointer": "/v", "type": "number"}),
        (f'{{"v": {"9" * 9000}}}', {"pointer": "/v"}),
    ],
)
def test_numbers_that_json_cannot_hold_are_none(text: str, rule: dict[str, Any]) -> None:
    assert find(text, **rule) is None


@pytest.mark.parametrize("text", ['{"v": "a\\ud800"}', "v: a\ud800"])
def test_halves_of_characters_do_no_harm(text: str) -> None:
    assert find(text, type="string") == "a?"
    assert find(text, type="number") is None


MUCH = 1_000_000


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a" * MUCH + "!", {"regex": "(a+)+$", "all": True}),
        ("ab" * MUCH, {"regex": "((a|b)*)a((a|b){900})c"}),
        ("a" * 300_000, {"regex": "b*", "all": True}),
        ("a " * 200_000, {"regex": "a(?: a)*b|a", "all": True}),
        ("v: x\n" * 200_000, {}),
        ("\n \n" * MUCH, {}),
        ("v" + "*" * MUCH, {}),
        ("ok " * 300_000, {"one_of": ["ok", "bad"]}),
        ("ok " * 300_000, {"one_of": ["ok", "bad"], "all": True}),
        ("v: " + "1," * MUCH, {"type": "list"}),
        ("{" * MUCH, {}),
        ("[" * MUCH, {"pointer": "/v"}),
        ("{x} " * 300_000, {"pointer": "/v"}),
        ("v: " + "9" * MUCH, {"type": "number"}),
    ],
)
def test_no_text_takes_long(text: str, rule: dict[str, Any]) -> None:
    started = time.process_time()
    find(text, **rule)
    assert time.process_time() - started < 5


def test_matches_are_bounded() -> None:
    found = find("x" * (2 * MAX_MATCHES), regex="x", all=True)
    assert found == ["x"] * MAX_MATCHES


def test_a_prefill_may_name_the_value() -> None:
    declared = {"verdict": Value(one_of=["ok", "bad"]), "risk": Value(pointer="/risk")}
    assert find_values(declared, " bad.", "Verdict:")[0] == {"verdict": "bad", "risk": None}
    assert find_values({"risk": Value(pointer="/risk")}, ' "high"}', '{"risk":')[0] == {"risk": "high"}
