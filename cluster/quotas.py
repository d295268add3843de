"""What tenants have used up of what they may: buckets that fill at a rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

BURST_S = 2.0
MINUTE_S = 60.0


class Bucket:
    """`most` fit in, and come back at `rate` a second. What is taken after the fact may leave a debt."""

    def __init__(self, rate: float, most: float, now_s: float) -> None:
        self.rate = rate
        self._most = most
        self._left = most
        self._at_s = now_s

    def take(self, amount: float, now_s: float) -> None:
        self._fill(now_s)
        self._left -= amount

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until there is so much of it: 0 if there is now."""
        self._fill(now_s)
        if self._left >= amount:
            return 0.0
        return max(1e-3, math.ceil((amount - self._left) / self.rate * 1000) / 1000)

    def _fill(self, now_s: float) -> None:
        self._left = min(self._most, self._left + (now_s - self._at_s) * self.rate)
        self._at_s = now_s


class Buckets:
    """One for each tenant that has a rate, begun anew when that changes."""

    def __init__(self, burst_s: float, least: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """So much of the rate, and `least`, may come at once."""
        self._burst_s, self._least, self._clock = burst_s, least, clock
        self._buckets: dict[str, Bucket] = {}

    def take(self, tenant: str, rate: float, amount: float) -> None:
        """`rate` is a second's."""
        self._bucket(tenant, rate).take(amount, self._clock())

    def wait_s(self, tenant: str, rate: float, amount: float = 0.0) -> float:
        return self._bucket(tenant, rate).wait_s(amount, self._clock())

    def drop(self, tenant: str) -> None:
        self._buckets.pop(tenant, None)

    def _bucket(self, tenant: str, rate: float) -> Bucket:
        bucket = self._buckets.get(tenant)
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[tenant] = Bucket(rate, max(self._least, rate * self._burst_s), self._clock())
        return bucket
