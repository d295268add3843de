"""Validation errors of the schema, in the words of the workflow language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from laban.cluster.workflow import schema
from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Code, Loc, Problem, suggest
from laban.cluster.workflow.names import NAME_RULE

# Keys of parts of the language still to come: said to be so, instead of "unknown".
_OF_ACTORS = {"model", "adapter", "tools", "response_schema"}
_OF_STEPS = {"loop", "steps", "when", "branch", "order", "timeout_s", "retries", "workflow"}
_RESERVED: dict[str, set[str]] = {
    "Workflow": {*_OF_ACTORS, "include"},
    "Agent": _OF_ACTORS,
    "Step": _OF_ACTORS | _OF_STEPS,
    "External": {"args", "input_schema", "output_schema", "timeout_s", "retries", "on_error", "lease_s"},
    "Vote": {"pattern", "pointer"},
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_OWN = {"name", "selector", "join", "for_each", "count", "range", "rest"}  # raised by schema.py, worded there


def explain(error: ValidationError) -> list[Problem]:
    """One problem for each error. What a reserved key leaves out (a loop has no `step`) is not held against it."""
    details = error.errors(include_url=False)[:MAX_PROBLEMS]
    problems = [_problem(dict(detail)) for detail in details]
    reserved = {p.loc[:-2] for p in problems if p.code == "not_built" and p.loc[-1:] == ("[key]",)}
    pairs = zip(details, problems, strict=True)
    return [p for detail, p in pairs if not (detail["type"] == "missing" and p.loc in reserved)]


def _problem(detail: Mapping[str, Any]) -> Problem:
    kind, loc = str(detail["type"]), tuple(detail["loc"])
    value = detail.get("input")
    limits = detail.get("ctx") or {}
    code: Code = "invalid"
    expected = ""
    message = str(detail["msg"])
    if kind == "extra_forbidden":
        return _unknown_key(loc)
    if kind == "not_built":
        code = "not_built"
    elif kind == "missing":
        return Problem(loc[:-1], f"`{loc[-1]}` is missing")
    elif kind in _TYPES:
        message, expected = "wrong type", _TYPES[kind]
        if kind == "finite_number":
            message = "not a finite number"
    elif kind == "literal_error":
        message, expected = "not one of the values served", str(limits.get("expected", ""))
    elif kind == "name":
        expected = NAME_RULE if "not a name" in message else "another name"
    elif kind not in _OWN:
        message, expected = "out of range", _limits(limits) or message
    return Problem(loc, message, _shown(value), expected, code=code)


def _limits(limits: Mapping[str, Any]) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    lengths = {"min_length": "at least", "max_length": "at most"}
    said = [f"{words[key]} {limits[key]}" for key in words if key in limits]
    said += [f"{lengths[key]} {limits[key]} long" for key in lengths if key in limits]
    return " and ".join(said)


def _shown(value: object) -> object:
    """Scalars are worth showing; a whole mapping is not."""
    return value if isinstance(value, str | int | float | bool) else None


def _unknown_key(loc: Loc) -> Problem:
    model = _model_at(loc[:-1])
    key = str(loc[-1])
    where = (*loc, "[key]")
    if key in _RESERVED.get(model.__name__, ()):
        return Problem(where, f"`{key}` is reserved, not served yet", code="not_built")
    known = set(model.model_fields) | ({"count"} if model is schema.Step else set())
    return Problem(where, f"unknown key '{key}'", expected=suggest(key, known))


def _model_at(loc: Loc) -> type[schema.Model]:
    """The model that stands at a path of the workflow."""
    model: type[schema.Model] = schema.Workflow
    within: dict[str, type[schema.Model]] = {
        "inputs": schema.Input,
        "messages": schema.Message,
        "agents": schema.Agent,
        "outputs": schema.Output,
        "steps": schema.Step,
        "read": schema.Read,
        "sampling": schema.Sampling,
        "join": schema.Join,
        "vote": schema.Vote,
        "external": schema.External,
        "for_each": schema.ForEach,
    }
    listed = ("inputs", "messages", "agents", "outputs", "steps", "read")
    skip = False
    for part in loc:
        if skip:  # the name or number of an element
            skip = False
        elif isinstance(part, str) and part in within:
            model = within[part]
            skip = part in listed and not (part == "read" and model is schema.Output)
    return model
