"""What may stand in a name that clients give: not every database takes every character."""

from __future__ import annotations

import unicodedata

from laban.actors.errors import InvalidInput


def is_plain(text: str) -> bool:
    """Whether it has neither control characters nor halves of others.

    >>> is_plain("order 66/é"), is_plain("a\\0b"), is_plain("\\ud800")
    (True, False, False)
    """
    return not any(unicodedata.category(each) in ("Cc", "Cs") for each in text)


def check_plain(text: str, field: str) -> None:
    """Raises InvalidInput."""
    if not is_plain(text):
        raise InvalidInput("expected no control characters", field=field, value=text)
