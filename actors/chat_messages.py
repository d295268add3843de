"""A conversation as chat clients give it: messages, the tools that the model may call, and its calls of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laban.actors.frames import name_line

TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the text of a JSON object, as a rule: models write what they like."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """`role` is system, user, assistant or tool. A tool's message answers the call `tool_call_id`."""

    role: str
    text: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it has to do with no tools."""
        return self.role != TOOL and not self.tool_calls


def for_template(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """As chat templates expect them: arguments as objects, and with a tool's answer the tool's name.

    >>> for_template([ChatMessage("user", "Hi", "bob")])
    [{'role': 'user', 'content': 'bob:\\nHi'}]
    """
    names: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == TOOL:
            name = message.name or names.get(message.tool_call_id, "")
            turn: dict[str, Any] = {"role": TOOL, "content": message.text, "tool_call_id": message.tool_call_id}
            turns.append(turn | {"name": name} if name else turn)
            continue
        turn = {"role": message.role, "content": name_line(message.name) + message.text}
        if message.tool_calls:
            names |= {call.call_id: call.name for call in message.tool_calls}
            turn["tool_calls"] = [_call(call) for call in message.tool_calls]
        turns.append(turn)
    return turns


def _call(call: ToolCall) -> Mapping[str, Any]:
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = call.arguments
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.call_id, "type": "function", "function": function}
