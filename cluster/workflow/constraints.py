"""What a generated text must be: a JSON schema that it follows, or texts to choose among; and the values in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from laban.actors.calls import Constraint
from laban.actors.errors import InvalidInput
from laban.actors.grammars import choices_problem, schema_problem, schema_text
from laban.cluster.workflow.endless_schemas import endless_problem
from laban.cluster.workflow.expressions import BUILT_IN_VALUES
from laban.cluster.workflow.names import NAME
from laban.cluster.workflow.pointers import point
from laban.cluster.workflow.tool_schemas import check_schema


def response_schema_problem(schema: Mapping[str, Any]) -> str:
    """Why it is no JSON schema, or none that can be enforced; "" if it can."""
    return check_schema(schema) or schema_problem(schema) or endless_problem(schema)


def property_names(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Properties of the object that a schema describes, by which expressions can name them. Of a reference, and of
    schemas taken together, those behind it."""
    names: dict[str, None] = {}
    seen: list[Any] = []
    left: list[Any] = [schema]
    while left:
        part = left.pop(0)
        if not isinstance(part, Mapping) or any(part is one for one in seen):
            continue
        seen.append(part)
        names |= dict.fromkeys(part.get("properties", ()))
        left += [inner for key in ("allOf", "anyOf", "oneOf") for inner in part.get(key, ())]
        if isinstance(reference := part.get("$ref"), str):
            left.append(point(schema, unquote(reference).removeprefix("#")))
    return tuple(name for name in names if NAME.fullmatch(name) is not None and name not in BUILT_IN_VALUES)


def constraint_of(schema: Mapping[str, Any] | None = None, choices: Sequence[str] | None = None) -> Constraint | None:
    """What a request with one of these asks for; None with neither. Raises InvalidInput, its field the argument's
    name as requests have it (`response_schema`, `choices`)."""
    if schema is not None:
        problem = response_schema_problem(schema)
        if problem:
            raise InvalidInput(problem, field="response_schema")
        return Constraint(schema=schema_text(schema))
    if choices is not None:
        problem, place = choices_problem(choices)
        if problem:
            raise InvalidInput(problem, field=f"choices{place}")
        return Constraint(choices=tuple(choices))
    return None
