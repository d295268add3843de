"""Checks of a workflow's parts that need neither inputs nor the graph: input names, defaults, templates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from laban.cluster.workflow.blocks import lay_out
from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Loc, Problem, suggest
from laban.cluster.workflow.expressions import parse_expression
from laban.cluster.workflow.inputs import check_defaults
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.sources import own_names
from laban.cluster.workflow.templates import TemplateProblem, variables_of

# Variables of a step's own, and words of the template language.
RESERVED_INPUTS = frozenset(
    {"agent", "index", "item", "round", "step", "loop", "true", "false", "none", "True", "False", "None"}
    | {"and", "or", "not", "in", "is", "if", "elif", "else", "for", "recursive"}
)


def static_problems(workflow: Workflow) -> list[Problem]:
    """What is wrong with input names, defaults, and templates."""
    problems = [
        Problem(
            ("inputs", name, "[key]"), f"'{name}' is a word of templates and cannot be an input", None, "another name"
        )
        for name in workflow.inputs
        if name in RESERVED_INPUTS
    ]
    found = islice(chain(_templates(workflow), _values(workflow)), MAX_PROBLEMS)
    return [*problems, *check_defaults(workflow), *found]


def _values(workflow: Workflow) -> Iterator[Problem]:
    """Expressions of values are over the text and the values before them."""
    for placed in lay_out(workflow).steps:
        known = {"text", *placed.step.typed_names}
        for name, value in placed.step.values.items():
            loc = (*placed.loc, "values", name, "expression")
            expression = None if value.expression is None else parse_expression(value.expression)
            if expression is not None and expression.references:
                message = "a value is made of its own step's text: it refers to no step"
                yield Problem(loc, message, value.expression, "`text`, or values before it by their names")
            for unknown in sorted(expression.variables - known) if expression is not None else ():
                yield Problem(loc, f"unknown variable '{unknown}'", value.expression, suggest(unknown, known))
            known.add(name)


def _templates(workflow: Workflow) -> Iterator[Problem]:
    for loc, text, own in _texts(workflow):
        known = {*workflow.inputs, *own}
        try:
            unknown = sorted(variables_of(text) - known)
        except TemplateProblem as problem:
            yield Problem(loc, f"not a template: {problem}")
            continue
        for name in unknown:
            yield Problem(loc, f"unknown variable '{name}'", None, suggest(name, known) or "an input of the workflow")


def _texts(workflow: Workflow) -> Iterator[tuple[Loc, str, set[str]]]:
    """Each template with the variables it has beside the inputs."""
    for name, message in workflow.messages.items():
        yield ("messages", name, "text"), message.text, {"item", "index"} if message.for_each is not None else set()
    for name, agent in workflow.agents.items():
        if agent.prompt is not None:
            yield ("agents", name, "prompt"), agent.prompt, {"agent"}
    for placed in lay_out(workflow).steps:
        yield (*placed.loc, "prefill"), placed.step.prefill, own_names(placed)
        if placed.step.name is not None:
            yield (*placed.loc, "name"), placed.step.name, own_names(placed)
