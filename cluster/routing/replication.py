"""When a message that many calls read is worth a copy on another worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from laban.cluster.routing.call_view import Need
from laban.kvstore.encodings import EncodingId

MIN_TOKENS = 64
"""Shorter messages are copied by whoever reads them, for next to nothing."""

MAX_HOT = 10_000
"""Messages kept count of; past that the coolest half is forgotten."""


@dataclass(slots=True)
class _Reads:
    count: float
    waited_ms: float
    at_s: float


class Replication:
    """A call weighs waiting at a holder against bringing the message elsewhere, for itself. But a copy also spares
    those who read the message after it, so of a hot one there may be too few copies for everyone's good: each reader by
    itself waits a little rather than copy.

    So what readers wait at its holders, beyond what they would have waited at the worker with the shortest queue, is
    added up over the last while (`half_life_s`), with how many they were. When together they waited longer than a copy
    would take, it pays: then a call is charged only its share of the copy's time, one part of 1 + that number. It so
    prefers a worker where it has to bring the message, with the holder as source. With each copy the waits become
    shorter, and when what they sum up to is less than a copy takes no more are made.

    Pure but for its counts: time comes from outside.
    """

    def __init__(self, half_life_s: float = 10.0) -> None:
        self._half_life_s = half_life_s
        self._reads: dict[EncodingId, _Reads] = {}

    def __bool__(self) -> bool:
        return bool(self._reads)

    def read(self, encoding_ids: Iterable[EncodingId], waited_ms: float, now_s: float) -> None:
        """A call that reads these was sent to a worker that holds them, to wait `waited_ms` longer than elsewhere."""
        if waited_ms < 1.0:
            return
        for encoding_id in encoding_ids:
            reads = self._reads.get(encoding_id)
            if reads is None:
                self._reads[encoding_id] = _Reads(1.0, waited_ms, now_s)
            else:
                faded = self._faded(reads, now_s)
                reads.count = reads.count * faded + 1.0
                reads.waited_ms = reads.waited_ms * faded + waited_ms
                reads.at_s = now_s
        if len(self._reads) > MAX_HOT:
            self._forget(now_s)

    def shares(self, needs: Sequence[Need], token_ms: float, now_s: float) -> list[float]:
        """`share` of each need, if a copy takes so long a token; empty if it is 1 for all. Those too short to be worth
        the while are charged in full."""
        shares: list[float] = []
        find = self._reads.get
        for at, (encoding_id, num_tokens, _, _) in enumerate(needs):
            reads = find(encoding_id)
            if reads is None or num_tokens < MIN_TOKENS or reads.waited_ms <= num_tokens * token_ms:
                continue
            share = self._share(reads, num_tokens * token_ms, now_s)
            if share < 1.0:
                if not shares:
                    shares = [1.0] * len(needs)
                shares[at] = share
        return shares

    def share(self, encoding_id: EncodingId, copy_ms: float, now_s: float) -> float:
        """The part of `copy_ms` that a call is charged for a copy: 1, or less where it pays."""
        reads = self._reads.get(encoding_id)
        return 1.0 if reads is None else self._share(reads, copy_ms, now_s)

    def _share(self, reads: _Reads, copy_ms: float, now_s: float) -> float:
        if reads.waited_ms <= copy_ms:  # it only fades
            return 1.0
        faded = self._faded(reads, now_s)
        if reads.waited_ms * faded <= copy_ms:
            return 1.0
        return 1.0 / (1.0 + reads.count * faded)

    def _faded(self, reads: _Reads, now_s: float) -> float:
        age_s = now_s - reads.at_s
        return float(0.5 ** (age_s / self._half_life_s)) if age_s > 0.0 else 1.0

    def _forget(self, now_s: float) -> None:
        by_heat = sorted(self._reads, key=lambda key: self._reads[key].waited_ms * self._faded(self._reads[key], now_s))
        for encoding_id in by_heat[: len(by_heat) // 2]:
            del self._reads[encoding_id]
