"""Validation errors of the schema, in the words of the workflow language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from laban.cluster.workflow import schema
from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Code, Loc, Problem, suggest
from laban.cluster.workflow.names import NAME_RULE

# Keys of parts of the language still to come: said to be so, instead of "unknown".
_OF_ACTORS = {"tools"}
_RESERVED: Mapping[type[schema.Model], set[str]] = {
    schema.Workflow: {*_OF_ACTORS, "include"},
    schema.Agent: _OF_ACTORS,
    schema.Step: _OF_ACTORS,
}
_TAGS: Mapping[str, type[schema.Model]] = {
    "(step)": schema.Step, "(loop)": schema.LoopBlock, "(when)": schema.WhenBlock,
}  # fmt: skip
# The models that stand under a key of a model; those of `_LISTED` as elements of a list or a mapping.
_UNDER: Mapping[type[schema.Model], Mapping[str, type[schema.Model]]] = {
    schema.Workflow: {
        "inputs": schema.Input, "messages": schema.Message, "agents": schema.Agent, "outputs": schema.Output,
        "workflows": schema.Workflow, "sampling": schema.Sampling,
    },
    schema.Agent: {"sampling": schema.Sampling},
    schema.LoopBlock: {"loop": schema.Loop},
    schema.Step: {
        "read": schema.Read, "sampling": schema.Sampling, "join": schema.Join, "vote": schema.Vote,
        "external": schema.External, "for_each": schema.ForEach, "retries": schema.Retries, "values": schema.Value,
        "messages": schema.BoundMessage,
    },
    schema.Output: {"join": schema.Join},
}  # fmt: skip
_LISTED = {"inputs", "messages", "agents", "outputs", "workflows", "values", "read"}
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
# What else than a mapping may be written in its place.
_SHORT = "a text or a mapping"
_FORMS: Mapping[type[schema.Model], str] = {
    schema.Read: _SHORT, schema.Message: _SHORT, schema.Agent: _SHORT, schema.Value: _SHORT, schema.Vote: _SHORT,
    schema.BoundMessage: _SHORT, schema.Output: _SHORT, schema.Join: "all, any or a mapping",
    schema.ForEach: "agents, a number, a list, a text or a mapping", schema.Retries: "a whole number or a mapping",
}  # fmt: skip
# Raised by the schema itself, worded there.
_OWN = {
    "name",
    "selector",
    "shorthand",
    "for_each",
    "range",
    "rest",
    "expression",
    "choices",
    "pattern",
    "pointer",
    "value",
    "loop",
    "json_schema",
}


def explain(error: ValidationError) -> list[Problem]:
    """One problem for each error."""
    return [_problem(dict(detail)) for detail in error.errors(include_url=False)[:MAX_PROBLEMS]]


def plain_loc(loc: Loc) -> Loc:
    """A path without what validation adds: the kinds of entries among steps."""
    return tuple(part for part in loc if part not in _TAGS)


def _problem(detail: Mapping[str, Any]) -> Problem:
    kind, tagged = str(detail["type"]), tuple(detail["loc"])
    loc = plain_loc(tagged)
    value = detail.get("input")
    limits = detail.get("ctx") or {}
    code: Code = "invalid"
    expected = ""
    message = str(detail["msg"])
    if kind == "extra_forbidden":
        return _unknown_key(tagged)
    if kind == "not_built":
        code = "not_built"
    elif kind == "missing":
        return Problem(loc[:-1], f"`{loc[-1]}` is missing")
    elif kind in _TYPES:
        message, expected = "wrong type", _form(kind, tagged)
        if kind == "finite_number":
            message = "not a finite number"
    elif kind == "literal_error":
        message, expected = "not one of the values served", str(limits.get("expected", ""))
    elif kind == "name":
        message, is_rule, _ = message.partition(f": {NAME_RULE}")
        expected = NAME_RULE if is_rule else "another name"
    elif kind not in _OWN:
        message, expected = "out of range", _limits(limits) or message
    return Problem(loc, message, _shown(value), expected, code=code)


def _form(kind: str, tagged: Loc) -> str:
    """What may stand at a place where something of another type does."""
    if kind in ("model_type", "model_attributes_type"):
        return _FORMS.get(_model_at(tagged), _TYPES[kind])
    if kind == "list_type" and tagged[-1] == "stop":
        return "a text or a list"
    return "a list or a mapping" if kind == "dict_type" and tagged[-1] == "values" else _TYPES[kind]


def _limits(limits: Mapping[str, Any]) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    lengths = {"min_length": "at least", "max_length": "at most"}
    said = [f"{words[key]} {limits[key]}" for key in words if key in limits]
    said += [f"{lengths[key]} {limits[key]} long" for key in lengths if key in limits]
    return " and ".join(said)


def _shown(value: object) -> object:
    """Scalars are worth showing; a whole mapping is not."""
    return value if isinstance(value, str | int | float | bool) else None


def _unknown_key(tagged: Loc) -> Problem:
    model = _model_at(tagged[:-1])
    key = str(tagged[-1])
    where = (*plain_loc(tagged), "[key]")
    if key in _RESERVED.get(model, ()):
        return Problem(where, f"`{key}` is reserved, not served yet", code="not_built")
    known = set(model.model_fields)
    if model in _TAGS.values():
        known |= {"step", "loop", "when", "count"}
    return Problem(where, f"unknown key '{key}'", expected=suggest(key, known - {key}))


def _model_at(tagged: Loc) -> type[schema.Model]:
    """The model that stands at a path of the workflow, as validation gives it."""
    model: type[schema.Model] = schema.Workflow
    skip = False
    for part in tagged:
        if skip:  # the name or number of an element
            skip = False
        elif isinstance(part, str) and part in _TAGS:
            model = _TAGS[part]
        elif isinstance(part, str) and part in _UNDER.get(model, {}):
            skip = part in _LISTED and not (part == "read" and model is schema.Output)
            model = _UNDER[model][part]
    return model
