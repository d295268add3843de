"""JSON schemas of what external steps are given and answer: draft 2020-12, checked in bounded time.

Schemas come from whoever submits a workflow, values from whoever answers: patterns run on RE2, which cannot
backtrack, and references stay within the schema, so that nothing is fetched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError, validators
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from laban.cluster.workflow.diagnostics import path_text
from laban.cluster.workflow.patterns import compile_pattern, pattern_problem

MAX_MESSAGE = 300  # characters
MAX_DEPTH = 64

_VALUES = frozenset({"const", "enum", "default", "examples"})  # hold values, not schemas
_DEEP = f"is nested too deep, or refers to itself without end; expected at most {MAX_DEPTH} levels"

# No document beside the schema: a reference that leads elsewhere leads nowhere.
_ALONE: Mapping[str, Any] = {"registry": Registry()}
Errors = Iterator[ValidationError]


def problem_with(schema: Mapping[str, object], value: object) -> str:
    """Why `value` is not what `schema` asks for, "" if it is. `schema` has passed `check_schema`."""
    try:
        validator = _Validator(_undated(schema), **_ALONE)
        error = best_match(validator.iter_errors(value))
    except RecursionError:
        return _DEEP
    except (ArithmeticError, ValueError, Unresolvable) as problem:
        return f"cannot be checked ({_cut(str(problem))})"
    if error is None:
        return ""
    path = path_text(tuple(error.absolute_path))
    return f"{path}: {_cut(error.message)}" if path else _cut(error.message)


def check_schema(schema: Mapping[str, object]) -> str:
    """Why `schema` is no JSON schema that can be served, "" if it is one."""
    if _depth(schema) > MAX_DEPTH:
        return _DEEP
    schema = _undated(schema)
    try:
        Draft202012Validator.check_schema(schema, format_checker=None)
    except SchemaError as error:
        path = path_text(tuple(error.absolute_path))
        return f"{path}: {_cut(error.message)}" if path else _cut(error.message)
    parts = list(_parts(schema))
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for part in parts:
        for pattern in [part.get("pattern"), *_keys(part.get("patternProperties"))]:
            if isinstance(pattern, str) and (problem := pattern_problem(pattern)):
                return f"the pattern {_cut(repr(pattern))} cannot be used ({_cut(problem)}), expected RE2 syntax"
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(reference := part.get(keyword), str):
                try:
                    if not reference.startswith("#"):
                        return f"{keyword} {_cut(repr(reference))} leads elsewhere, expected one into the schema: #/..."
                    resolver.lookup(reference)
                except Unresolvable:
                    return f"{keyword} {_cut(repr(reference))} leads nowhere in the schema"
        if isinstance(part.get("$id"), str):
            return "$id has no use here: references stay within the schema"
    if any("unevaluatedProperties" in part for part in parts) and any("patternProperties" in part for part in parts):
        return "unevaluatedProperties together with patternProperties is not served; use additionalProperties"
    return ""


def _pattern(validator: Any, pattern: str, instance: object, schema: Any) -> Errors:
    if isinstance(instance, str) and not compile_pattern(pattern).search(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: object, schema: Any) -> Errors:
    if isinstance(instance, dict):
        for pattern, wanted in patterns.items():
            for key, item in instance.items():
                if compile_pattern(pattern).search(key):
                    yield from validator.descend(item, wanted, path=key, schema_path=pattern)


def _additional_properties(validator: Any, wanted: Any, instance: object, schema: Mapping[str, Any]) -> Errors:
    if not isinstance(instance, dict):
        return
    patterns = [compile_pattern(pattern) for pattern in schema.get("patternProperties", {})]
    known = schema.get("properties", {})
    extra = [key for key in instance if key not in known and not any(each.search(key) for each in patterns)]
    if wanted is False and extra:
        yield ValidationError(f"{', '.join(map(repr, extra[:5]))}: no such property, expected {_listed(known)}")
    elif isinstance(wanted, dict):
        for key in extra:
            yield from validator.descend(instance[key], wanted, path=key)


def _unique_items(validator: Any, unique: bool, instance: object, schema: Any) -> Errors:
    """By what items are as JSON: comparing each with each would take the square of their number."""
    if unique and isinstance(instance, list):
        seen: set[str] = set()
        for place, item in enumerate(instance):
            text = json.dumps(_plain(item), sort_keys=True)
            if text in seen:
                yield ValidationError(f"item {place} was there before, expected unique items")
                return
            seen.add(text)


_KEYWORDS: dict[str, Callable[..., Errors]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}
_Validator: Any = validators.extend(Draft202012Validator, _KEYWORDS)


def _plain(value: object) -> object:
    """With whole numbers as int: 1.0 is 1."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _undated(schema: Any) -> Any:
    """The schema without `$schema`, by which jsonschema would go over to a validator of its own, and its patterns."""
    if isinstance(schema, Mapping):
        return {
            key: item if key in _VALUES else _undated(item)
            for key, item in schema.items()
            if not (key == "$schema" and isinstance(item, str))
        }
    return [_undated(item) for item in schema] if isinstance(schema, list | tuple) else schema


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and every mapping in it."""
    if isinstance(schema, Mapping):
        yield schema
        for key, item in schema.items():
            if key not in _VALUES:
                yield from _parts(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from _parts(item)


def _depth(value: Any) -> int:
    """How deep it is nested, as far as that is allowed."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inner += item.values()
            elif isinstance(item, list | tuple):
                inner += item
        level = inner
    return depth


def _keys(value: object) -> list[object]:
    return list(value) if isinstance(value, Mapping) else []


def _listed(known: Mapping[str, object]) -> str:
    names = ", ".join(map(repr, list(known)[:10]))
    return names or "none"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE // 2]}...{text[-MAX_MESSAGE // 3 :]}"
