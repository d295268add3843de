"""How models write that they call tools, read out of their text. Pure.

Two ways cover most open models: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen), and the bare
`{"name": ..., "parameters": {...}}` of Llama 3. Which one a model has been taught its chat template says.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Called:
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """`text` is what is left for people to read."""

    text: str
    calls: tuple[Called, ...] = ()


class ToolFormat(Protocol):
    opening: str  # before a call that has to come
    arguments_key: str

    def parse(self, text: str, names: Collection[str]) -> Parsed:
        """A whole answer. `names` are those of the tools there are: what calls another is text."""

    def certain(self, text: str) -> int:
        """Of an answer so far, how many characters are sure to be text."""


class Hermes:
    opening = f"{OPEN}\n"
    arguments_key = "arguments"

    def parse(self, text: str, names: Collection[str]) -> Parsed:
        """
        >>> Hermes().parse('Wait.<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', ["add"])
        Parsed(text='Wait.', calls=(Called(name='add', arguments='{"a": 1}'),))
        """
        calls, kept, at = [], [], 0
        while (begin := text.find(OPEN, at)) >= 0:
            read = _object_at(text, begin + len(OPEN))
            called = None if read is None else _called(read[0], names)
            if called is None or read is None:
                kept.append(text[at : begin + len(OPEN)])
                at = begin + len(OPEN)
                continue
            kept.append(text[at:begin])
            calls.append(called)
            at = read[1]
            rest = text[at:].lstrip(_SPACE)
            if rest.startswith(CLOSE):
                at = len(text) - len(rest) + len(CLOSE)
        kept.append(text[at:])
        left = "".join(kept)
        return Parsed(left.strip(_SPACE) if calls else left, tuple(calls))

    def certain(self, text: str) -> int:
        begin = text.find(OPEN)
        return begin if begin >= 0 else len(text) - _overlap(text, OPEN)


class Llama:
    opening = ""
    arguments_key = "parameters"

    def parse(self, text: str, names: Collection[str]) -> Parsed:
        """
        >>> Llama().parse('{"name": "add", "parameters": {"a": 1}}', ["add"])
        Parsed(text='', calls=(Called(name='add', arguments='{"a": 1}'),))
        """
        rest = text.strip(_SPACE).removeprefix(PYTHON_TAG)
        calls, at = [], 0
        while rest[at:].strip(_SPACE + ";"):
            at = len(rest) - len(rest[at:].lstrip(_SPACE + ";"))
            read = _object_at(rest, at)
            called = None if read is None else _called(read[0], names)
            if called is None or read is None:
                return Parsed(text)
            calls.append(called)
            at = read[1]
        return Parsed("", tuple(calls)) if calls else Parsed(text)

    def certain(self, text: str) -> int:
        start = text.lstrip(_SPACE)
        may_call = not start or start[0] == "{" or start.startswith(PYTHON_TAG[: len(start)])
        return 0 if may_call or start.startswith(PYTHON_TAG) else len(text)


def format_of(template: str) -> ToolFormat | None:
    """That of a model with this chat template; None if it is neither of the two."""
    if OPEN in template:
        return Hermes()
    if PYTHON_TAG in template or ('"parameters"' in template and "ipython" in template):
        return Llama()
    return None


def _object_at(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The JSON object that begins there, white space aside, and where it ends."""
    while start < len(text) and text[start] in _SPACE:
        start += 1
    try:
        found, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (found, end) if isinstance(found, dict) else None


def _called(found: dict[str, Any], names: Collection[str]) -> Called | None:
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):  # some models write them as text
        read = _object_at(arguments, 0)
        arguments = None if read is None else read[0]
    name = found.get("name")
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return Called(name, json.dumps(arguments, ensure_ascii=False))


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters may be the beginning of `mark`."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
