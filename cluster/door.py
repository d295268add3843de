"""Who comes in: every call of the API is let through, or refused, here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from laban.actors.errors import Exhausted, Forbidden, LabanError, Unauthenticated
from laban.cluster.callers import ANYONE, Caller, Role
from laban.cluster.tokens import Quota

logger = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]

NEEDS: dict[str, Role] = {
    **dict.fromkeys(("Get", "List", "Watch", "ExplainStep", "GetSession", "GetStatus"), "read"),
    **dict.fromkeys(("AddWorker", "DrainWorker"), "admin"),
}
"""What a method asks for; "submit" where it is not named."""
REFRESH_EVERY_S = 1.0
BURST_S = 2.0
KEY = "authorization"


class Book(Protocol):
    """`cluster.tokens.TokenBook`."""

    def refresh(self) -> bool: ...

    def find(self, token: str) -> Caller | None: ...

    def quota(self, tenant: str) -> Quota: ...


class Door:
    """Without a book everybody may do everything, as one tenant."""

    def __init__(self, book: Book | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._book = book
        self._clock = clock
        self._looked_s = clock()
        self._buckets: dict[str, _Bucket] = {}

    def enter(self, method: str, metadata: Metadata) -> Caller:
        """Who calls this method. Raises Unauthenticated, Forbidden, and Exhausted for a tenant that calls too often."""
        if self._book is None:
            return ANYONE
        now_s = self._clock()
        if now_s - self._looked_s >= REFRESH_EVERY_S:
            self._looked_s = now_s
            self._refresh(self._book)
        found = self._book.find(_bearer(metadata))
        if found is None:
            raise Unauthenticated("the token is unknown or has expired", field=KEY)
        role = NEEDS.get(method, "submit")
        if not found.may(role):
            held = ", ".join(sorted(found.roles))
            raise Forbidden(f"{method} needs the role {role}, this token has {held}", field=KEY)
        quota = self._book.quota(found.tenant)
        self._count(found.tenant, quota.requests_per_s, now_s)
        return replace(found, max_workflows=quota.max_workflows)

    def _count(self, tenant: str, rate: float | None, now_s: float) -> None:
        if rate is None:
            self._buckets.pop(tenant, None)
            return
        bucket = self._buckets.get(tenant)
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[tenant] = _Bucket(rate, now_s)
        wait_s = bucket.take(now_s)
        if wait_s > 0:
            refused = Exhausted(
                f"more than {rate:g} calls a second", field="tenants." + tenant + ".requests_per_s", value=rate
            )
            refused.retry_after_s = wait_s
            raise refused

    def _refresh(self, book: Book) -> None:
        try:
            if book.refresh():
                logger.info("the tokens file has changed")
        except LabanError as error:  # those who were let in before still are
            logger.error("the tokens file is left aside: %s", error)


class _Bucket:
    """So many calls a second, and what was left of the last seconds at once."""

    def __init__(self, rate: float, now_s: float) -> None:
        self.rate = rate
        self._most = max(1.0, rate * BURST_S)
        self._left = self._most
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Take one if there is one: 0, or the time until there will be."""
        self._left = min(self._most, self._left + (now_s - self._at_s) * self.rate)
        self._at_s = now_s
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return max(1e-3, math.ceil((1 - self._left) / self.rate * 1000) / 1000)


def _bearer(metadata: Metadata) -> str:
    given = [value for key, value in metadata if key == KEY]
    if not given:
        raise Unauthenticated("missing, expected `Bearer TOKEN`", field=KEY)
    text = given[0].decode("ascii", "replace") if isinstance(given[0], bytes) else given[0]
    scheme, _, token = text.partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("expected one `Bearer TOKEN`", field=KEY)  # never quoted: it may be the token
    return token.strip()
