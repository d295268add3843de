"""WorkerTallies in the making. Each of these is a few hundred nanoseconds, once an iteration or a token."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Any, get_args

from laban.actors.tallies import BOUNDS, Copies, Link, Spread, WorkerTallies


class Tallying:
    """Owned by the engine's thread."""

    def __init__(self) -> None:
        self._counts = {name: [0] * (len(bounds) + 1) for name, bounds in BOUNDS.items()}
        self._totals = dict.fromkeys(BOUNDS, 0.0)
        self._copies = {f"copies_{link}": Copies() for link in get_args(Link)}
        self._values: Counter[str] = Counter()

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """`name` is that of a spread."""
        self._counts[name][bisect_left(BOUNDS[name], value)] += times
        self._totals[name] += value * times

    def add(self, name: str, amount: int) -> None:
        """`name` is that of a number."""
        self._values[name] += amount

    def copied(self, link: str, num_bytes: int, seconds: float, *, failed: bool = False, waited_s: float = 0.0) -> None:
        """`link` is one of Link."""
        before = self._copies[f"copies_{link}"]
        self._copies[f"copies_{link}"] = Copies(
            before.num + 1,
            before.num_failed + failed,
            before.num_bytes + num_bytes,
            before.seconds + seconds,
            before.wait_s + waited_s,
        )

    def totals(self) -> WorkerTallies:
        found: dict[str, Any] = {**self._copies, **self._values}
        found |= {name: Spread(tuple(counts), self._totals[name]) for name, counts in self._counts.items()}
        return WorkerTallies(**found)
