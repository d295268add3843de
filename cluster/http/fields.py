"""Reading a request's JSON: each value with its path, so that what is wrong is named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from laban.actors.errors import InvalidInput


def read_object(body: bytes) -> dict[str, Any]:
    """Raises InvalidInput for what is no JSON object."""
    try:
        found = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not valid JSON ({str(error)[:200]})") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"the body is a JSON {kind_of(found)}, expected an object")
    return found


class Fields:
    """An object's fields. null is as good as absent. Raises InvalidInput with the field's path."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, Mapping):
            raise InvalidInput("expected an object", field=path, value=value)
        self._values, self._path = value, path

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def names(self) -> Iterator[str]:
        """Of what is given."""
        return (name for name, value in self._values.items() if value is not None)

    def only(self, names: Sequence[str]) -> None:
        for name in self.names():
            if name not in names:
                raise InvalidInput(f"is not known here, expected {', '.join(names)}", field=self.path(name))

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise InvalidInput("missing, expected text", field=self.path(name))
            return default
        if not isinstance(value, str):
            raise InvalidInput("expected text", field=self.path(name), value=value)
        try:
            value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
            raise InvalidInput("is not valid Unicode text", field=self.path(name), value=value) from None
        return value

    def one_of(self, name: str, words: Sequence[str], default: str | None = None) -> str:
        value = self.text(name, default)
        if value not in words:
            raise InvalidInput(f"expected one of {', '.join(words)}", field=self.path(name), value=value)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidInput("expected true or false", field=self.path(name), value=value)
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInput(f"expected a whole number, {low} to {high}", field=self.path(name), value=value)
        return value

    def number(self, name: str, low: float, high: float, default: float, *, above: bool = False) -> float:
        """`above`: `low` itself is not allowed."""
        value = self._values.get(name)
        if value is None:
            return default
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not low <= value <= high or (above and value == low) or not math.isfinite(value):
            least = f"more than {low:g}" if above else f"{low:g} or more"
            raise InvalidInput(f"expected a number, {least} and at most {high:g}", field=self.path(name), value=value)
        return float(value)

    def items(self, name: str, most: int) -> list[tuple[str, Any]]:
        """A list's items, each with its path; none if it is absent."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            raise InvalidInput(f"expected a list of at most {most}", field=self.path(name), value=value)
        return [(f"{self.path(name)}[{place}]", item) for place, item in enumerate(value)]

    def inner(self, name: str) -> Fields:
        return Fields(self._values.get(name), self.path(name))


def kind_of(value: object) -> str:
    names = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", type(None): "null"}
    return names.get(type(value), "value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two values under one key was meant nobody can say."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidInput("is given twice in one object, expected once", field=twice[:200])
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
