"""The JSON Schema of a workflow file, for editors: pydantic's, with the short forms that the language also takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from laban.cluster.workflow import schema_types, shorthands
from laban.cluster.workflow.names import NAME
from laban.cluster.workflow.reference_texts import ABOUT, COUNT, TEXTS, models
from laban.cluster.workflow.schema import External, Step, Workflow
from laban.cluster.workflow.schema_types import MAX_FAN_OUT

Schema = dict[str, Any]

_NAME = f"^{NAME.pattern}$"
_SELECTOR = r"^\s*[A-Za-z][A-Za-z0-9_]*\s*(\[[^\[\]]*\]\s*)?$"
# What validators of single values check, as far as a JSON Schema can say it; the title is its name in the tables.
_LEAVES: Mapping[Callable[..., Any], Schema] = {
    schema_types._name: {"title": "name", "pattern": _NAME},
    schema_types._label: {"title": "name", "pattern": _NAME},
    schema_types._selector: {"title": "read", "pattern": _SELECTOR},
    schema_types._expression: {"title": "expression"},
    schema_types._argument: {"title": "expression or value"},
    schema_types._pattern: {"title": "regular expression"},
    schema_types._pointer: {"title": "JSON pointer", "pattern": "^(/|$)"},
    schema_types._json_schema: {"title": "JSON schema"},
    schema_types._response_schema: {"title": "JSON schema"},
    schema_types._choices: {
        "title": "texts or expression",
        "anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "string"}],
    },
}
_BARE = "x-bare"  # of a bare text, until all definitions are there
_NAMED = {"properties", "$defs"}  # keywords whose keys are names
_DROPPED = {"default", "discriminator"}
_NAMES = {"type": "array", "items": {"type": "string", "title": "name", "pattern": _NAME}}
_SHORT: Mapping[Callable[..., Any], list[Schema]] = {
    shorthands.list_of_one: [{"type": "string"}],
    shorthands.join: [{"enum": ["all", "any"]}],
    shorthands.retries: [{"type": "integer", "minimum": 0, "maximum": 100}],
    shorthands.values: [_NAMES],
    shorthands.for_each: [
        {"const": "agents"},
        {"type": "integer", "minimum": 1, "maximum": MAX_FAN_OUT},
        _NAMES,
        {"type": "string", "title": "name", "pattern": _NAME},
    ],
}


def workflow_schema() -> Schema:
    """Draft 2020-12, without an id: a file may be checked against a copy of it wherever that lies."""
    found = Workflow.model_json_schema(schema_generator=_Generator)
    definitions: dict[str, Schema] = found["$defs"]
    for model in models():
        definition = _without_nulls(definitions[model.__name__])
        definition |= {"description": ABOUT[model], "additionalProperties": False}
        definition.pop("title", None)
        for key, text in TEXTS[model].items():
            definition["properties"][key]["description"] = text
        definitions[model.__name__] = definition
    step, external = definitions[Step.__name__]["properties"], definitions[External.__name__]["properties"]
    step["count"] = {"type": "integer", "minimum": 1, "maximum": MAX_FAN_OUT, "description": COUNT}
    external |= {key: step[key] for key in shorthands._OF_THE_STEP}
    whole = {"$ref": f"#/$defs/{Workflow.__name__}", "$defs": dict(sorted(definitions.items()))}
    _spell_bare(whole, definitions)
    return whole


class _Generator(GenerateJsonSchema):
    """Adds what validators mean to what pydantic knows."""

    def function_after_schema(self, schema: Any) -> Schema:
        leaf = _LEAVES.get(schema["function"]["function"], {})
        return {**super().function_after_schema(schema), **leaf}

    def function_before_schema(self, schema: Any) -> Schema:
        inner = super().function_before_schema(schema)
        shorthand = inspect.getclosurevars(schema["function"]["function"]).nonlocals.get("shorthand")
        if shorthand is None:
            return inner
        key = inspect.getclosurevars(shorthand).nonlocals.get("key")  # of `shorthands.bare`
        return {"anyOf": [*(_SHORT[shorthand] if key is None else [{**inner, _BARE: key}]), inner]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: Any) -> Schema:
        found = super().dict_schema(schema)
        for pattern, value in found.pop("patternProperties", {}).items():
            found |= {"propertyNames": {"pattern": pattern}, "additionalProperties": value}
        return found


def _spell_bare(schema: Any, definitions: Mapping[str, Schema]) -> None:
    """A bare text is what the key that it stands for is."""
    if isinstance(schema, dict) and _BARE in schema:
        key, model = schema.pop(_BARE), schema.pop("$ref").rpartition("/")[2]
        schema |= {**definitions[model]["properties"][key], "description": f"Short for {{{key}: ...}}."}
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _spell_bare(inner, definitions)


def _without_nulls(schema: Any) -> Any:
    """A key that has no value is left out, not null; and defaults are in the tables."""
    if isinstance(schema, list):
        return [_without_nulls(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    named = {key: {name: _without_nulls(item) for name, item in schema[key].items()} for key in _NAMED & set(schema)}
    found = {key: _without_nulls(item) for key, item in schema.items() if key not in _DROPPED} | named
    if "oneOf" in found:
        found["anyOf"] = found.pop("oneOf")
    options = [option for option in found.get("anyOf", ()) if option != {"type": "null"}]
    flat = [inner for option in options for inner in (option["anyOf"] if set(option) == {"anyOf"} else [option])]
    if "anyOf" in found:
        found["anyOf"] = flat
    if len(flat) == 1:
        del found["anyOf"]
        found = {**flat[0], **found}
    return found
