"""Texts that come from outside: how long one may be, and where it is made into tokens."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from typing import TypeVar

from laban.actors.errors import InvalidInput
from laban.cluster.workflow.names import MAX_TEXT

LONG_TEXT = 16_384  # characters; to tokenize so many takes some 10 ms
MAX_NAME = 256
MAX_ERROR = 10_000
T = TypeVar("T")


def check_text(text: str, field: str, most: int = MAX_TEXT) -> str:
    """The text itself. Raises InvalidInput for one of more than `most` characters."""
    if len(text) > most:
        raise InvalidInput(f"{len(text)} characters, expected at most {most}", field=field)
    return text


def check_name(name: str, field: str) -> str:
    """The name itself, of who says a message: it is one line of it. Raises InvalidInput for what is no such line."""
    check_text(name, field, MAX_NAME)
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in name):
        raise InvalidInput("expected no line breaks and control characters", field=field, value=name)
    return name


def check_plain(text: str, field: str) -> None:
    """Raises InvalidInput for a key or an id with control characters, or halves of others: not every database takes
    them."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise InvalidInput("expected no control characters", field=field, value=text)


async def aside(num_chars: int, work: Callable[[], T]) -> T:
    """What `work` gives, which goes through a text of `num_chars`: in another thread if that is long, so that the event
    loop goes on; else here and now."""
    return await asyncio.to_thread(work) if num_chars > LONG_TEXT else work()
