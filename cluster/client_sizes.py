"""Requests that are larger than the server takes: which part of them is to blame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from laban.actors.errors import Exhausted

# In gRPC's words, which come without anything of the server's own: it has not read the request.
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
_WRAPPERS = ("submit",)  # fields that no caller has heard of


def too_large(details: str, request: Message | None) -> Exhausted | None:
    """The error for a request that was refused with these details; None if its size was not the reason."""
    found = _TOO_LARGE.search(details)
    if found is None:
        return None
    size, most = map(int, found.groups())
    problem = (
        f"the request has {_mib(size)} and the server takes {_mib(most)}: "
        "send less, or raise server.max_message_bytes there"
    )
    if request is None:
        return Exhausted(problem)
    path, part = largest_field(request)
    return Exhausted(f"has {_mib(part)}; {problem}", field=path)


def largest_field(request: Message) -> tuple[str, int]:
    """The path of the field that takes most of a request, and its bytes.

    Follows the largest part down as long as that is most of what it is part of.
    """
    path, size, at = "", request.ByteSize(), request
    while True:
        name, part, value = max(_parts(at), key=lambda found: found[1], default=("", 0, None))
        if 2 * part < size or not name:
            return path, size
        if name not in _WRAPPERS:
            path += name if name.startswith("[") or not path else f".{name}"
        size = part
        if not isinstance(value, Message) or value.DESCRIPTOR.full_name.startswith("google.protobuf."):
            return path, size
        at = value


def _parts(message: Message) -> Iterator[tuple[str, int, Any]]:
    """Name, bytes and value of each field; of maps and lists, of each element."""
    for field, value in message.ListFields():
        if isinstance(value, Mapping):
            yield from ((f"{field.name}.{key}", _size(value[key]), value[key]) for key in value)
        elif isinstance(value, str | bytes | int | float | Message):
            yield field.name, _size(value), value
        else:
            yield field.name, sum(map(_size, value)), None


def _size(value: object) -> int:
    if isinstance(value, Message):
        return value.ByteSize()
    return len(value.encode()) if isinstance(value, str) else len(value) if isinstance(value, bytes) else 8


def _mib(size: int) -> str:
    """
    >>> _mib(16777216), _mib(100)
    ('16 MiB', '0.1 KiB')
    """
    unit, name = (1 << 20, "MiB") if size >= 1 << 20 else (1 << 10, "KiB")
    return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
