"""JSON schemas that hold themselves again without an end: no text follows one, but a model could begin it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from laban.cluster.workflow.pointers import point

_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def endless_problem(schema: Mapping[str, Any]) -> str:
    """Where a schema holds itself again without an end; "" if it does nowhere. `schema` is a valid one.

    >>> endless_problem({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})
    'it holds itself again without an end, so no text can follow it'
    >>> endless_problem({"type": "object", "properties": {"a": {"$ref": "#"}}})
    ''
    """
    parts = list(_parts(schema, ""))
    users: dict[int, list[Mapping[str, Any]]] = {}
    for _, part in parts:
        for inner in (*_within(part), _referred(part, schema)):
            users.setdefault(id(inner), []).append(part)
    endless = {id(part) for _, part in parts}  # as far as is known: those that no text was found for yet
    left = deque(part for _, part in reversed(parts))
    while left:
        part = left.popleft()
        if id(part) in endless and _is_finite(part, schema, endless):
            endless.discard(id(part))
            left += users.get(id(part), ())
    place = next((path for path, part in parts if id(part) in endless), None)
    if place is None:
        return ""
    return f"{place}{': ' if place else ''}it holds itself again without an end, so no text can follow it"


def _is_finite(part: Mapping[str, Any], schema: Mapping[str, Any], endless: set[int]) -> bool:
    """Whether a text follows the part, as far as that is known of those in it."""

    def has(inner: object) -> bool:
        return id(inner) not in endless

    if not has(_referred(part, schema)) or not all(map(has, part.get("allOf", ()))):
        return False
    if not all(any(map(has, part[key])) for key in ("anyOf", "oneOf") if part.get(key)):
        return False
    if "const" in part or "enum" in part:
        return True
    kinds = part.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds is None or set(kinds) - {"object", "array"}:
        return True
    inner = part.get("properties", {})
    other = part.get("additionalProperties") if not part.get("patternProperties") else None
    if "object" in kinds and all(has(inner.get(name, other)) for name in part.get("required", ())):
        return True
    first, least = part.get("prefixItems", ()), part.get("minItems", 0)
    items = [*first[: int(least)], *([part.get("items")] if least > len(first) else [])]
    return "array" in kinds and all(map(has, items))


def _referred(part: Mapping[str, Any], schema: Mapping[str, Any]) -> object:
    """What the part's `$ref` points at; None if it has none."""
    reference = unquote(part["$ref"]) if isinstance(part.get("$ref"), str) else ""
    return point(schema, reference[1:]) if reference == "#" or reference.startswith("#/") else None


def _parts(part: object, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schema and all schemas within, outer ones first, with their paths."""
    if isinstance(part, Mapping):
        yield path, part
        for name, inner in _named(part):
            yield from _parts(inner, f"{path}{'.' if path else ''}{name}")


def _within(part: Mapping[str, Any]) -> Iterator[object]:
    return (inner for _, inner in _named(part))


def _named(part: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The schemas right within a schema."""
    for key in _BY_NAME:
        yield from ((f"{key}.{name}", inner) for name, inner in (part.get(key) or {}).items())
    for key in _LISTS:
        yield from ((f"{key}[{place}]", inner) for place, inner in enumerate(part.get(key) or ()))
    yield from ((key, part[key]) for key in _SINGLE if key in part)
