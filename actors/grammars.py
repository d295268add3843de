"""What a constrained text must be, as a grammar of llguidance; and what that library cannot enforce, said by name.

No tokenizer is needed here: whoever takes a request in checks it before any worker hears of it. The library is not
imported before something is constrained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from laban.actors.calls import Constraint

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_CHARS = 100_000
MAX_CHOICES = 1_000
MAX_CHOICES_CHARS = 100_000  # in all

# One way to write each document: free white space would let a model write nothing else without end.
_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ",
    "coerce_one_of": False, "lenient": False,
}  # fmt: skip
# Of JSON Schema 2020-12: what the library refuses, what it would take for a mere remark, and its own options.
_UNSERVED = frozenset(
    {"not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames", "uniqueItems"}
    | {"dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"}
    | {"$dynamicRef", "$recursiveRef", "$id", "x-guidance"}
)
_SYNTAX = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")  # of regular expressions
_ONE_OF = "oneOf: more than one of these may hold for the same text; use anyOf"
_HOLD_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")  # by name
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def schema_problem(schema: Mapping[str, Any]) -> str:
    """Why texts cannot be made to follow a valid JSON schema (draft 2020-12), with the place in it; "" if they can.

    >>> schema_problem({"properties": {"tags": {"type": "array", "uniqueItems": True}}})
    'properties.tags.uniqueItems: cannot be enforced while text is generated'
    """
    return _schema_problem(schema_text(schema))


def schema_text(schema: Mapping[str, Any]) -> str:
    """As a Constraint has it: its properties in their order, which is the one that they are generated in."""
    return json.dumps(_undated(schema), ensure_ascii=False)


def choices_problem(choices: object) -> tuple[str, str]:
    """Why these are no texts to choose among, and the place in them ("" for all); two empty texts if they are."""
    if not isinstance(choices, list | tuple):
        return "expected a list of texts", ""
    if not 0 < len(choices) <= MAX_CHOICES:
        return f"{len(choices)} texts, expected 1 to {MAX_CHOICES}", ""
    first_at: dict[str, int] = {}
    for place, text in enumerate(choices):
        if not isinstance(text, str):
            return "expected text", f"[{place}]"
        if not text:
            return "is empty", f"[{place}]"
        if text != text.strip():
            return f"{text!r} begins or ends with white space, which tokenizers may drop", f"[{place}]"
        if (first := first_at.setdefault(text, place)) < place:
            return f"{text!r} is there already, at [{first}]", f"[{place}]"
    if (length := sum(map(len, choices))) > MAX_CHOICES_CHARS:
        return f"{length} characters, expected at most {MAX_CHOICES_CHARS} in all", ""
    return "", ""


def grammar_of(constraint: Constraint) -> str:
    """What llguidance compiles."""
    from llguidance import LLMatcher

    if constraint.schema:
        found: str = LLMatcher.grammar_from_json_schema(constraint.schema, overrides=_OPTIONS)
        return found
    spelled: str = LLMatcher.grammar_from_regex("|".join(_SYNTAX.sub(r"\\\g<0>", text) for text in constraint.choices))
    return spelled


@lru_cache(maxsize=256)
def _schema_problem(text: str) -> str:
    if len(text) > MAX_SCHEMA_CHARS:
        return f"{len(text)} characters as JSON, expected at most {MAX_SCHEMA_CHARS}"
    schema = json.loads(text)
    for path, part in _parts(schema, ()):
        if (problem := _unserved(path, part)) is not None:
            return problem
    problem = _complaint(schema)
    if not problem:
        return ""
    return f"{_path(_culprit(schema, problem))}{_ONE_OF if problem.startswith('oneOf') else problem}"


def _unserved(path: Sequence[str], part: Mapping[str, Any]) -> str | None:
    for keyword, value in part.items():
        if keyword in _UNSERVED and not (keyword == "uniqueItems" and value is False):
            return f"{_path((*path, keyword))}cannot be enforced while text is generated"
    step = part.get("multipleOf")
    if isinstance(step, float) and not step.is_integer():
        return f"{_path((*path, 'multipleOf'))}fractions are none exactly once read as binary numbers; use a whole one"
    if _is_narrow(part):
        return f"{_path(path)}exclusive bounds less than 1 apart cannot be enforced; use minimum and maximum"
    # An object may name one key twice, which counts twice here and once for whoever reads it.
    is_open = part.get("additionalProperties", True) is not False or part.get("patternProperties")
    if is_open and part.get("minProperties", 0) > len(part.get("required", ())):
        return f"{_path((*path, 'minProperties'))}can be enforced with `additionalProperties: false` only"
    return None


def _is_narrow(part: Mapping[str, Any]) -> bool:
    """Whether numbers are to lie between bounds, one of them exclusive, less than 1 apart: the library may take the
    bound itself then."""
    lows = [part[key] for key in ("minimum", "exclusiveMinimum") if key in part]
    highs = [part[key] for key in ("maximum", "exclusiveMaximum") if key in part]
    is_exclusive = "exclusiveMinimum" in part or "exclusiveMaximum" in part
    return is_exclusive and part.get("type") != "integer" and bool(lows and highs) and min(highs) - max(lows) < 1


def _complaint(schema: Any) -> str:
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
    return " ".join(LLMatcher.validate_grammar(grammar).split())


def _culprit(schema: Mapping[str, Any], problem: str) -> tuple[str, ...]:
    """The path of the innermost part that has the same problem by itself."""
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    found: tuple[str, ...] = ()
    for path, part in _parts(schema, ()):
        if len(path) > len(found) and path[: len(found)] == found and _complaint({**definitions, **part}) == problem:
            found = path
    return found


def _parts(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The schema and all schemas within, outer ones first."""
    if not isinstance(schema, Mapping):
        return
    yield path, schema
    for key in _HOLD_SCHEMAS:
        for name, inner in (schema.get(key) or {}).items():
            yield from _parts(inner, (*path, key, name))
    for key in _LISTS:
        for place, inner in enumerate(schema.get(key) or ()):
            yield from _parts(inner, (*path, f"{key}[{place}]"))
    for key in _SINGLE:
        yield from _parts(schema.get(key), (*path, key))


def _path(path: Sequence[str]) -> str:
    return f"{'.'.join(path)}: " if path else ""


def _undated(schema: Any) -> Any:
    """Without `$schema`: all are read as draft 2020-12."""
    return {key: value for key, value in schema.items() if key != "$schema"}
