"""Typed inputs: what a caller gives, checked against what the workflow declares."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from laban.cluster.workflow.diagnostics import Problem, suggest
from laban.cluster.workflow.names import MAX_TEXT
from laban.cluster.workflow.schema import Input, Workflow

MAX_ITEMS = 10_000
EXPECTED = {
    "string": f"text of at most {MAX_TEXT} characters",
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "list": f"a list of at most {MAX_ITEMS} texts, numbers or booleans",
}

Value = str | int | float | bool | tuple[str | int | float | bool, ...]


def check_inputs(workflow: Workflow, given: Mapping[str, object]) -> tuple[dict[str, Value], list[Problem]]:
    """Every input's value, given or default. Numbers and booleans may be given as their text."""
    values: dict[str, Value] = {}
    problems = [
        Problem(
            ("inputs", str(name)), f"unknown input '{name}'", None, suggest(str(name), workflow.inputs), in_file=False
        )
        for name in given
        if name not in workflow.inputs
    ]
    for name, declared in workflow.inputs.items():
        if name not in given and declared.default is None:
            problems.append(Problem(("inputs", name), f"input '{name}' is not given and has no default"))
            continue
        raw = given.get(name, declared.default)
        value = _convert(raw, declared.type, from_text=name in given)
        if value is None:
            is_own = name not in given
            expected = EXPECTED[declared.type]
            problems.append(Problem(("inputs", name), "wrong type or size", raw, expected, in_file=is_own))
        else:
            values[name] = value
    return values, problems


def as_declared(workflow: Workflow, given: Mapping[str, object]) -> dict[str, object]:
    """Values that were computed, numbers and booleans written out where the workflow asks for text."""
    texts = {name for name, declared in workflow.inputs.items() if declared.type == "string"}
    return {n: json.dumps(v) if n in texts and isinstance(v, int | float) else v for n, v in given.items()}


def known_values(workflow: Workflow, values: Mapping[str, object]) -> dict[str, object]:
    """`values`, and the defaults of the inputs that are not given."""
    defaults = {n: declared.default for n, declared in workflow.inputs.items() if declared.default is not None}
    return {**defaults, **values}


def num_items(workflow: Workflow, values: Mapping[str, object]) -> dict[str, int]:
    """The number of items of each list input; of one that is not given its default's, or 1."""
    found: dict[str, int] = {}
    for name, declared in workflow.inputs.items():
        if declared.type == "list":
            value = values.get(name, declared.default)
            found[name] = len(value) if isinstance(value, list | tuple) else 1
    return found


def check_defaults(workflow: Workflow) -> list[Problem]:
    """Defaults that are not of their input's type."""
    return [
        Problem(("inputs", name, "default"), "wrong type or size", declared.default, EXPECTED[declared.type])
        for name, declared in workflow.inputs.items()
        if declared.default is not None and _convert(declared.default, declared.type, from_text=False) is None
    ]


def placeholder(declared: Input) -> Value:
    """A stand-in for a value not given yet, so that templates can be tried."""
    blank: dict[str, Value] = {"string": "x", "integer": 1, "number": 1.0, "boolean": True, "list": ("x",)}
    return blank[declared.type]


def _convert(raw: object, kind: str, *, from_text: bool) -> Value | None:
    """`raw` as a value of `kind`; None if it is not one."""
    if kind == "list":
        if not isinstance(raw, list | tuple) or len(raw) > MAX_ITEMS:
            return None
        items = tuple(raw)
        texts = sum(len(item) for item in items if isinstance(item, str))
        return items if texts <= MAX_TEXT and all(_is_scalar(item) for item in items) else None
    if isinstance(raw, str):
        if kind == "string":
            return raw if len(raw) <= MAX_TEXT else None
        return _from_text(raw, kind) if from_text else None
    if isinstance(raw, bool):
        return raw if kind == "boolean" else None
    if isinstance(raw, int):
        return (raw if abs(raw) < 2**63 else None) if kind in ("integer", "number") else None
    if isinstance(raw, float) and math.isfinite(raw):
        if kind == "number":
            return raw
        return int(raw) if kind == "integer" and raw.is_integer() and abs(raw) < 2**63 else None
    return None


def _is_scalar(item: object) -> bool:
    return isinstance(item, str | bool | int) or (isinstance(item, float) and math.isfinite(item))


def _from_text(text: str, kind: str) -> Value | None:
    if kind == "boolean":
        return {"true": True, "false": False}.get(text.strip().lower())
    try:
        value = int(text) if kind == "integer" else float(text)
    except ValueError:
        return None
    return value if abs(value) < 2**63 else None  # neither infinite nor NaN, then
