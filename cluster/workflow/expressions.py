"""Expressions over what steps made: `review.verdict == "ok"`, `judge[all].score | mean > 3`.

The language is that of templates (Jinja's, sandboxed and bounded: `templates.py`); `STEP.VALUE`, `STEP[...].VALUE` with
the arguments of a read, are what steps made. The values are those that a step declares, and `text`, `code` (its first
fenced block) and `failed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from laban.cluster.workflow.selectors import SelectorError, parse_selector
from laban.cluster.workflow.templates import TemplateProblem, compile_expression, parse_tree

MAX_CHARS = 10_000
BUILT_IN_VALUES = ("text", "code", "failed")


class ExpressionProblem(ValueError):
    """An expression that does not parse, uses what is not allowed, or cannot be evaluated; the message says why."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A value of what `selector` selects."""

    selector: str
    value: str


@dataclass(frozen=True, slots=True)
class Expression:
    """`variables` are those beside what it refers to."""

    text: str
    references: tuple[Reference, ...]
    variables: frozenset[str]
    _evaluate: Callable[[Mapping[str, object]], Any] = field(compare=False, repr=False)

    def evaluate(self, variables: Mapping[str, object], referred: Sequence[object]) -> Any:
        """Its value, given those of its references, in order. Raises ExpressionProblem."""
        try:
            found = {_variable(number): value for number, value in enumerate(referred)}
            return self._evaluate({**variables, **found})
        except TemplateProblem as problem:
            raise ExpressionProblem(str(problem)) from None


@lru_cache(maxsize=4096)
def parse_expression(text: str) -> Expression:
    """
    >>> parse_expression('review.verdict == "ok" and round > 1').references
    (Reference(selector='review', value='verdict'),)

    Raises ExpressionProblem.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionProblem(f"an expression of {len(text)} characters, at most {MAX_CHARS}")
    try:
        finder = _Finder()
        tree = finder.visit(parse_tree(text))
        names = {node.name for node in (tree, *tree.find_all(nodes.Name)) if isinstance(node, nodes.Name)}
        own = {_variable(number) for number in range(len(finder.references))}
        evaluate = compile_expression(tree)
    except TemplateProblem as problem:
        raise ExpressionProblem(str(problem).removeprefix("line 1: ")) from None
    except (SelectorError, RecursionError) as error:
        raise ExpressionProblem(str(error) if isinstance(error, SelectorError) else "nested too deeply") from None
    return Expression(text, tuple(finder.references), frozenset(names - own), evaluate)


def _variable(number: int) -> str:
    return f"made{number}_by_steps"


class _Finder(NodeTransformer):
    """Puts a variable in the place of each reference."""

    def __init__(self) -> None:
        self.references: list[Reference] = []

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        selector = _selector_of(node.node)
        parse_selector(selector)
        reference = Reference(selector, node.attr)
        if reference not in self.references:
            self.references.append(reference)
        return nodes.Name(_variable(self.references.index(reference)), "load", lineno=node.lineno)


def _selector_of(node: nodes.Node) -> str:
    """`answer`, or `answer[others, previous]`, as a read writes it."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name):
        inside = node.arg.items if isinstance(node.arg, nodes.Tuple) else [node.arg]
        return f"{node.node.name}[{', '.join(map(_argument, inside))}]"
    raise TemplateProblem("'.' is for a step's values: STEP.VALUE or STEP[...].VALUE")


def _argument(node: nodes.Node) -> str:
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Const) and isinstance(node.value, int):
        return str(node.value)
    raise TemplateProblem("in STEP[...] stand a word, a name or a number, as in reads")
