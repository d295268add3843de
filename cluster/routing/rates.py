"""How fast each worker encodes, measured from the calls it finished."""

from __future__ import annotations

DEFAULT_TOKENS_PER_MS = 0.5
MIN_TOKENS = 16
"""Calls that encoded fewer say more about fixed costs than about the rate."""


class Rates:
    """A moving average for each worker; a worker not measured yet is assumed to be as fast as the others."""

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self._rates: dict[str, float] = {}

    def observe(self, worker_id: str, tokens: int, milliseconds: float) -> None:
        """A call encoded `tokens` in `milliseconds`, with nothing queued before it."""
        if tokens < MIN_TOKENS or milliseconds <= 0:
            return
        rate = tokens / milliseconds
        before = self._rates.get(worker_id)
        self._rates[worker_id] = rate if before is None else before + self._weight * (rate - before)

    def tokens_per_ms(self, worker_id: str) -> float:
        if worker_id in self._rates:
            return self._rates[worker_id]
        if self._rates:
            return sum(self._rates.values()) / len(self._rates)
        return DEFAULT_TOKENS_PER_MS

    def forget(self, worker_id: str) -> None:
        self._rates.pop(worker_id, None)
