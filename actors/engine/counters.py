"""What the cache did, counted from the worker's start."""

from __future__ import annotations

from collections import Counter

from laban.actors.calls import CacheCounters


class Counters:
    """CacheCounters in the making, by the names of its fields."""

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()

    def add(self, name: str, amount: float) -> None:
        assert name in CacheCounters.__dataclass_fields__, name
        self._values[name] += amount  # type: ignore[assignment]

    def totals(self) -> CacheCounters:
        return CacheCounters(**self._values)
