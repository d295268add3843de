"""What was used last, as far as it fits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A mapping that forgets what was used longest ago once the sizes add up to more than `most`."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._found: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key][0]

    def peek(self, key: K) -> V | None:
        """`get` that may be called in another thread."""
        found = self._found.get(key)
        return None if found is None else found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """What is larger than all that fits is not kept."""
        self.drop(key)
        if size > self._most:
            return
        self._found[key] = (value, size)
        self._size += size
        while self._size > self._most:
            self.drop(next(iter(self._found)))

    def drop(self, key: K) -> None:
        _, size = self._found.pop(key, (None, 0))
        self._size -= size

    def adopt(self, other: Recent[K, V]) -> None:
        """All that the other one has."""
        for key, (value, size) in other._found.items():
            self.put(key, value, size)
