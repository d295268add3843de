"""JSON pointers (RFC 6901)."""

from __future__ import annotations

from collections.abc import Mapping


def point(document: object, pointer: str) -> object:
    """What `pointer` points at; None if nothing is there.

    >>> point({"risks": [{"level": 3}]}, "/risks/0/level")
    3
    """
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, Mapping):
            document = document.get(key)
        elif isinstance(document, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(document):
            document = document[int(key[:9])]
        else:
            return None
    return document
