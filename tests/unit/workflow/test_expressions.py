"""Expressions: what they refer to, what they make of it, that they reach nothing else and end quickly."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from laban.cluster.workflow.expressions import ExpressionProblem, Reference, parse_expression

pytestmark = pytest.mark.slow

VALUES: dict[str, Any] = {
    "n": 3, "x": "hello", "f": 1.5, "nothing": None, "docs": ("a", "b"), "scores": [7, None, 9, 7],
    "names": ["bob", "ann", None, "bob"], "many": list(range(1_000_000)), "long": "y" * 1_000_000,
}  # fmt: skip


def evaluate(text: str, *referred: object) -> object:
    return parse_expression(text).evaluate(VALUES, referred)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n > 2 and x == 'hello'", True),
        ("not (n in [1, 2])", True),
        ("n + 2 - 1", 4),
        ("7 // 2 + 7 % 2", 4),
        ("'yes' if n > 2 else 'no'", "yes"),
        ("docs[1]", "b"),
        ("docs | length", 2),
        ("docs | first", "a"),
        ("x | upper", "HELLO"),
        ("nothing is none", True),
        ("unknown | default(5)", 5),
        ("scores | mean", 23 / 3),
        ("scores | sum", 23),
        ("scores | min", 7),
        ("scores | max", 9),
        ("scores | ranked", [3, 1, 4]),
        ("scores | ranked(true)", [1, 4, 3]),
        ("scores | ranked | take(2)", [3, 1]),
        ("scores | take(0)", []),
        ("names | majority", "bob"),
        ("names | majority(0.7)", None),
        ("[] | majority", None),
        ("[] | mean", None),
        ("[none] | max", None),
        ("docs | join(', ')", "a, b"),
        ("f | round", 2.0),
        ("f | round(1, 'floor')", 1.5),
        ("[[1, 2], [2], [1, 2]] | majority", [1, 2]),
        ("'7' | int", 7),
    ],
)
def test_what_expressions_can_say(text: str, value: object) -> None:
    assert evaluate(text) == value


def test_references_are_found_and_given_their_values() -> None:
    expression = parse_expression('review.verdict == "ok" and judge[all, last].score | mean > limit or review.verdict')
    assert expression.references == (Reference("review", "verdict"), Reference("judge[all, last]", "score"))
    assert expression.variables == {"limit"}
    assert expression.evaluate({"limit": 5}, ["ok", [4, 7]]) is True
    assert expression.evaluate({"limit": 6}, [None, [4, 7]]) is None


@pytest.mark.parametrize(
    ("text", "selectors"),
    [
        ("a.text", ["a"]),
        ("a[2].text", ["a[2]"]),
        ("a[bob, 2].text", ["a[bob, 2]"]),
        ("a[others, previous].text | first", ["a[others, previous]"]),
        ("a.text if a.x else b.text", ["a", "a", "b"]),
    ],
)
def test_references_are_reads(text: str, selectors: list[str]) -> None:
    assert sorted(reference.selector for reference in parse_expression(text).references) == selectors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unexpected"),
        ("1 +", "unexpected"),
        ("a b", "'b' is too many"),
        ("a.b.c", "STEP.VALUE"),
        ("x.upper()", "Call"),
        ("range(9)", "Call"),
        ("x['__class__'].y", "a word, a name or a number"),
        ("a[-1].b", "a word, a name or a number"),
        ("a[winner(v)].b", "a word, a name or a number"),
        ("a[0].b", "count from 1"),
        ("a[1, 2, 3].b", "at most two"),
        ("x[0:9]", "Slice"),
        ("n * 9", "Mul"),
        ("10 ** 10 ** 10", "Pow"),
        ("n / 2", "Div"),
        ("x ~ x", "Concat"),
        ("{'a': 1}", "Dict"),
        ("x | attr('upper')", "no filter 'attr'"),
        ("x | format(n)", "no filter 'format'"),
        ("x | sort(attribute='y')", "Keyword"),
        ("x is callable", "no test"),
        ("_tick", "start with _"),
        ("{{ x }}", "expected token"),
        ("'a", ""),
        ("n if", "unexpected"),
        ("x" * 10_001, "at most 10000"),
    ],
)
def test_what_is_no_expression(text: str, words: str) -> None:
    with pytest.raises(ExpressionProblem) as caught:
        parse_expression(text)
    assert words in str(caught.value)
    assert not str(caught.value).startswith("line 1")


@pytest.mark.parametrize(
    "text",
    [
        "unknown",
        "x['upper']",
        "x + x",
        "'%999999999d' % n",
        "n < x",
        "nothing > 3",
        "-x",
        "n % 0",
        "docs[9]",
        "[] | first",
        "x | mean",
        "n | length",
        "scores | mean(1, 2)",
        "scores | take('x')",
        "f | round(999999999, 'ceil')",
        "n | round(-999999999)",
        "many | join(long)",
    ],
)
def test_what_cannot_be_evaluated(text: str) -> None:
    expression = parse_expression(text)
    with pytest.raises(ExpressionProblem):
        expression.evaluate(VALUES, ())


def test_a_reference_is_the_value_and_never_an_attribute() -> None:
    for text in ("x.__class__", "n.real", "docs.count", "self.x", "loop.index"):
        assert evaluate(text, None) is None
        assert len(parse_expression(text).references) == 1


@pytest.mark.parametrize(
    "text",
    [
        "(" * 4_000 + "1" + ")" * 4_000,
        "[" * 4_900 + "]" * 4_900,
        "not " * 2_400 + "n",
        "-" * 9_000 + "n",
        "+".join(["n"] * 4_900),
        " and ".join(["n"] * 1_600),
        " if n else ".join(["n"] * 800),
        "<".join(["n"] * 4_900),
        "x" + "|d" * 4_900,
        "+".join(f"a[{number}].v" for number in range(1, 1_000)),
        "many | majority",
        "many | ranked | take(2)",
        "many | sort | length",
        "many | string | length",
        "[many, many, many] | tojson | length",
        "long in [long, long]",
    ],
)
def test_no_expression_takes_long(text: str) -> None:
    started = time.process_time()
    with suppress(ExpressionProblem):
        parse_expression(text).evaluate(VALUES, [1] * 1_000)
    assert time.process_time() - started < 5
