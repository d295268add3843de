"""Templates reach nothing and cannot run away."""

from __future__ import annotations

import pytest

from laban.cluster.workflow.templates import MAX_OUTPUT, TemplateProblem, render, variables_of

VALUES = {"x": "hello", "docs": ("a", "b"), "n": 3, "many": tuple(range(10_000)), "long": "y" * 1_000_000}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain { } %", "plain { } %"),
        ("{{ x }}\n", "hello\n"),
        ("{% for d in docs %}{{ loop.index }}.{{ d }} {% endfor %}", "1.a 2.b "),
        ("{% if n > 2 and x is string %}{{ n + 1 }}{% else %}no{% endif %}", "4"),
        ("{{ docs | join(', ') }} {{ x | upper }} {{ docs[0] }} {{ docs | length }}", "a, b HELLO a 2"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
    ],
)
def test_what_templates_can_say(text: str, expected: str) -> None:
    assert render(text, VALUES) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ nowhere }}",
        "{{ x.__class__ }}",
        "{{ x['__class__'] }}",
        "{{ x['upper'] }}",
        "{{ x.upper() }}",
        "{{ range(9) }}",
        "{{ x * 1000000 }}",
        "{{ 9 ** 999999 }}",
        "{{ x + x }}",
        "{{ '%999999999d' % n }}",
        "{{ x ~ x }}",
        "{% set x = x %}",
        "{% include 'etc' %}",
        "{% import 'os' as os %}",
        "{% macro m() %}{% endmacro %}",
        "{{ x | replace('h', long) }}",
        "{{ x | center(999999999) }}",
        "{{ loop.cycle('a') }}",
        "{{ _tick }}",
        "{{ n % 0 }}",
        "{{ n < x }}",
        "{{ x",
        "{% for d in docs %}",
        "{{ " + "(" * 5000 + "x" + ")" * 5000 + " }}",
        "{% for a in many %}{% for b in many %}{% endfor %}{% endfor %}",
        "{% for a in many %}{% if long | upper == 'x' %}{% endif %}{% endfor %}",
        "{{ long }}" * 10,
        "{{ many | join(long) }}",
    ],
)
def test_what_templates_cannot(text: str) -> None:
    with pytest.raises(TemplateProblem):
        render(text, VALUES)


def test_the_output_is_bounded_while_it_is_made() -> None:
    assert len(render("{{ long }}" * 4, VALUES)) == MAX_OUTPUT
    with pytest.raises(TemplateProblem, match="characters"):
        render("{{ long }}" * 4 + "!", VALUES)


def test_variables_are_known_before_rendering() -> None:
    assert variables_of("{{ x }}{% for d in docs %}{{ d }}{{ loop.index }}{% endfor %}") == {"x", "docs"}
    assert variables_of("no { template") == frozenset()
