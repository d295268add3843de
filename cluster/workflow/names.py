"""Names a workflow's author may choose, the words that mean something in a read, and how long a text may be."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

# Words of the selector grammar (of this part of the language and of those to come), and `agents` of `for_each`.
RESERVED_NAMES = frozenset(
    {"agents", "all", "any", "batch", "current", "first", "inputs", "item"}
    | {"last", "next", "none", "others", "previous", "prompt", "self", "winner"}
)

MAX_TEXT = 4_000_000  # characters of one text

NAME_RULE = "a letter, then letters, digits or _, at most 64 in all"

_INDEX = re.compile(r"\[[^]]*\]")


def name_problem(name: str) -> str:
    """Why `name` may not be used; empty if it may."""
    if name in RESERVED_NAMES:
        return f"'{name}' is a word of the language and cannot be a name"
    if NAME.fullmatch(name) is None:
        return f"not a name: {NAME_RULE}"
    return ""


def step_path(address: str) -> str:
    """The step that an instance is of, in whichever workflow within it is.

    >>> step_path("research[2]/draft[bob,1]")
    'research/draft'
    """
    return _INDEX.sub("", address)
