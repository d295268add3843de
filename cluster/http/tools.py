"""The tools of a request: their definitions, and whether one has to be called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laban.actors.calls import Constraint
from laban.actors.errors import InvalidInput
from laban.cluster.http.fields import Fields
from laban.cluster.http.tool_formats import ToolFormat
from laban.cluster.workflow.constraints import constraint_of

MAX_TOOLS = 128
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class Tools:
    """`definitions` as templates expect them. With `constraint` the answer is a call, opened with `opening`."""

    definitions: tuple[Mapping[str, Any], ...] = ()
    format: ToolFormat | None = None
    most_calls: int | None = None
    constraint: Constraint | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(each["function"]["name"] for each in self.definitions)

    @property
    def opening(self) -> str:
        return "" if self.constraint is None or self.format is None else self.format.opening


def read_tools(body: Fields, form: ToolFormat | None) -> Tools:
    """`form` is how the model calls tools, None if that is not known."""
    definitions = tuple(_definition(Fields(item, path)) for path, item in body.items("tools", MAX_TOOLS))
    names = [each["function"]["name"] for each in definitions]
    if len(set(names)) < len(names):
        raise InvalidInput("two tools have the same name, expected different ones", field="tools")
    choice = _choice(body, names)
    if not definitions or choice == "none":
        return Tools()
    if form is None:
        why = "the model's chat template has no tools, or calls them in a way that is not read here; expected none"
        raise InvalidInput(why, field="tools")
    most = 1 if not body.flag("parallel_tool_calls", True) else None
    if choice == "auto":
        return Tools(definitions, form, most)
    named = [each for each in definitions if choice in ("required", each["function"]["name"])]
    return Tools(definitions, form, 1, _forced(named, form))


def _choice(body: Fields, names: list[str]) -> str:
    """none, auto, required or the name of a tool."""
    given = body.get("tool_choice")
    if given is None:
        return "auto"
    if isinstance(given, str):
        choice = body.one_of("tool_choice", ("none", "auto", "required"))
        if choice == "required" and not names:
            raise InvalidInput("there are no tools, expected none or auto", field="tool_choice", value=choice)
        return choice
    fields = body.inner("tool_choice")
    fields.only(("type", "function"))
    fields.one_of("type", ("function",))
    inner = fields.inner("function")
    inner.only(("name",))
    return inner.one_of("name", names) if names else inner.one_of("name", ("(there are no tools)",))


def _definition(fields: Fields) -> Mapping[str, Any]:
    fields.only(("type", "function"))
    fields.one_of("type", ("function",))
    inner = fields.inner("function")
    inner.only(("name", "description", "parameters", "strict"))
    name = inner.text("name")
    if NAME.fullmatch(name) is None:
        raise InvalidInput("expected 1 to 64 letters, digits, _ and -", field=inner.path("name"), value=name)
    if inner.flag("strict"):
        why = "arguments are held to their schema only where `tool_choice` asks for a call, expected false"
        raise InvalidInput(why, field=inner.path("strict"), value=True)
    function: dict[str, Any] = {"name": name}
    if inner.has("description"):
        function["description"] = inner.text("description")
    if inner.has("parameters") and not isinstance(inner.get("parameters"), dict):
        raise InvalidInput("expected an object", field=inner.path("parameters"), value=inner.get("parameters"))
    function["parameters"] = inner.get("parameters") or NO_PARAMETERS
    return {"type": "function", "function": function}


def _forced(definitions: list[Mapping[str, Any]], form: ToolFormat) -> Constraint | None:
    """The answer is a call of one of these."""
    shared: dict[str, Any] = {}
    calls = []
    for definition in definitions:
        function = definition["function"]
        parameters = dict(function["parameters"])
        # What is referred to has to be at the top.
        shared |= {key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters}
        properties = {"name": {"const": function["name"]}, form.arguments_key: parameters}
        calls.append(
            {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        )
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    try:
        return constraint_of({**schema, **shared})
    except InvalidInput as error:
        raise InvalidInput(f"cannot be enforced: {error.message}", field="tool_choice") from None
