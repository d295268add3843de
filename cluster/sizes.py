"""Sizes in bytes, as people write them: 4GiB, 512MiB, 2GB, 5e9."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40, "KB": 10**3, "MB": 10**6,
         "GB": 10**9, "TB": 10**12}  # fmt: skip
_EXPECTED = "expected a number of bytes, such as 4GiB, 512MiB or 2GB"
MAX_BYTES = 1 << 60


def parse_size(value: object) -> object:
    """Bytes of a size with a unit; what is neither text nor a truth value is left as it is. ValueError for other text.

    >>> parse_size("4GiB"), parse_size("1.5 MB"), parse_size("5e9"), parse_size(7)
    (4294967296, 1500000, 5000000000, 7)
    """
    if isinstance(value, bool):
        raise ValueError(_EXPECTED)
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?(?:[eE]\d{1,2})?)\s*([A-Za-z]*)", value.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise ValueError(_EXPECTED)
    return int(found[1]) if found[1].isdigit() and not found[2] else round(float(found[1]) * _UNITS[found[2].upper()])


def shown_bytes(number: float) -> str:
    """
    >>> shown_bytes(0), shown_bytes(1536), shown_bytes(5 << 30)
    ('0 B', '1.5 KiB', '5.0 GiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while number >= 1000 and power < len(units) - 1:
        number, power = number / 1024, power + 1
    return f"{number:.1f} {units[power]}" if power else f"{number:.0f} B"


Bytes = Annotated[int, BeforeValidator(parse_size)]
BytesPerSecond = Annotated[float, BeforeValidator(parse_size)]
