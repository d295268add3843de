"""The grammar of reads: which messages `answer[others,previous]` means, as written.

    selector := NAME [ "[" argument [ "," argument ] "]" ]
    argument := WORD | NAME | NUMBER | "winner" "(" NAME ")"

Which argument is the member and which the round depends on the step that NAME is: see `resolve.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from laban.cluster.workflow.names import NAME

_SHAPE = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*(?:\[([^\[\]]*)\]\s*)?")
_WINNER = re.compile(r"winner\s*\(\s*([A-Za-z][A-Za-z0-9_]*)\s*\)")
_NUMBER = re.compile(r"[0-9]{1,9}")
MAX_CHARS = 300


class SelectorError(ValueError):
    """The text is not a selector; the message says why."""


@dataclass(frozen=True, slots=True)
class Winner:
    """The member that won the vote of a step."""

    vote: str


Argument = str | int | Winner


@dataclass(frozen=True, slots=True)
class Selector:
    """`name` as written and up to two arguments: words and names as text, numbers as int."""

    name: str
    arguments: tuple[Argument, ...] = ()


def parse_selector(text: str) -> Selector:
    """
    >>> parse_selector("answer[others, previous]")
    Selector(name='answer', arguments=('others', 'previous'))

    Raises SelectorError.
    """
    if len(text) > MAX_CHARS:
        raise SelectorError(f"a read of {len(text)} characters, at most {MAX_CHARS}")
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise SelectorError("not a read: write NAME, NAME[member], NAME[round] or NAME[member,round]")
    name, inside = match.groups()
    if NAME.fullmatch(name) is None:
        raise SelectorError("a name has at most 64 characters")
    if inside is None:
        return Selector(name)
    parts = [part.strip() for part in inside.split(",")]
    if len(parts) > 2:
        raise SelectorError(f"{len(parts)} arguments, at most two: NAME[member,round]")
    return Selector(name, tuple(_argument(part) for part in parts))


def _argument(text: str) -> Argument:
    if _NUMBER.fullmatch(text):
        number = int(text)
        if number < 1:
            raise SelectorError("members and rounds count from 1")
        return number
    winner = _WINNER.fullmatch(text)
    if winner is not None:
        return Winner(winner.group(1))
    if NAME.fullmatch(text):
        return text
    raise SelectorError(f"'{text}' is not a word, a name, a number or winner(STEP)" if text else "an empty argument")
