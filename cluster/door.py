"""Who comes in: every call of the API is let through, or refused, here."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from laban.actors.errors import Exhausted, Forbidden, LabanError, Unauthenticated
from laban.cluster.callers import ANYONE, Caller, Role
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.quotas import BURST_S, MINUTE_S, Buckets
from laban.cluster.tenants import NO_LIMITS, Tenants
from laban.cluster.tokens import Quota

logger = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]

NEEDS: dict[str, Role] = {
    **dict.fromkeys(("Get", "List", "Watch", "ExplainStep", "GetSession", "GetStatus", "Models"), "read"),
    **dict.fromkeys(("AddWorker", "DrainWorker"), "admin"),
}
"""What a method asks for; "submit" where it is not named."""
REFRESH_EVERY_S = 1.0
SPENDS = ("Submit", "Run", "Prefill", "Decode", "Chat", "Audit")
"""What has tokens computed."""
KEY = "authorization"


class Book(Protocol):
    """`cluster.tokens.TokenBook`."""

    def refresh(self) -> bool: ...

    def find(self, token: str) -> Caller | None: ...

    def quota(self, tenant: str) -> Quota: ...

    @property
    def kv_bytes(self) -> Mapping[str, int]: ...


class Door(Tenants):
    """Without a book everybody may do everything, as one tenant."""

    def __init__(
        self, book: Book | None = None, *, meter: Meter = NO_METER, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._book = book
        self._meter = meter
        self._clock = clock
        self._looked_s = clock()
        self._refused = ""  # why the book's last change is left aside, so that it is logged once
        self._calls = Buckets(BURST_S, 1.0, clock)
        self._tokens = Buckets(MINUTE_S, clock=clock)
        self._open: Counter[str] = Counter()  # calls, by tenant

    def enter(self, method: str, metadata: Metadata) -> Caller:
        """Who calls this method. Raises Unauthenticated, Forbidden, and Exhausted for a tenant that calls too often or
        has used up its tokens."""
        try:
            return self._enter(method, metadata)
        except Unauthenticated:
            self._meter.refused("unauthenticated")
            raise
        except Forbidden:
            self._meter.refused("denied")
            raise

    @contextmanager
    def staying(self, caller: Caller) -> Iterator[None]:
        """For as long as a call takes, a stream's to its end. Raises Exhausted for a tenant that has too many open."""
        tenant, most = caller.tenant, None if self._book is None else self._book.quota(caller.tenant).max_calls
        if most is not None and self._open[tenant] >= most:
            raise self._over(f"{most} calls are open", tenant, "max_calls", most)
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]

    @property
    def kv_bytes(self) -> Mapping[str, int]:
        return NO_LIMITS if self._book is None else self._book.kv_bytes

    def spent(self, tenant: str, num_tokens: int) -> None:
        if self._book is not None:
            per_minute = self._book.quota(tenant).tokens_per_minute
            if per_minute is not None:
                self._tokens.take(tenant, per_minute / MINUTE_S, num_tokens)

    def _enter(self, method: str, metadata: Metadata) -> Caller:
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
        self._count(found.tenant, quota.requests_per_s)
        if method in SPENDS and quota.tokens_per_minute is not None:
            self._check_tokens(found.tenant, quota.tokens_per_minute)
        return replace(found, max_workflows=quota.max_workflows, max_sessions=quota.max_sessions)

    def _count(self, tenant: str, rate: float | None) -> None:
        if rate is None:
            self._calls.drop(tenant)
            return
        wait_s = self._calls.wait_s(tenant, rate, 1.0)
        if wait_s > 0:
            raise self._over(f"more than {rate:g} calls a second", tenant, "requests_per_s", rate, wait_s)
        self._calls.take(tenant, rate, 1.0)

    def _check_tokens(self, tenant: str, per_minute: int) -> None:
        wait_s = self._tokens.wait_s(tenant, per_minute / MINUTE_S)
        if wait_s > 0:
            why = f"the tokens of this minute are used up, {per_minute} generated and encoded ones"
            raise self._over(why, tenant, "tokens_per_minute", per_minute, wait_s)

    def _over(self, why: str, tenant: str, quota: str, value: float, wait_s: float | None = None) -> Exhausted:
        self._meter.refused(quota)
        refused = Exhausted(why, field=f"tenants.{tenant}.{quota}", value=value)
        refused.retry_after_s = wait_s
        return refused

    def _refresh(self, book: Book) -> None:
        try:
            if book.refresh():
                logger.info("the tokens file has changed")
            self._refused = ""
        except LabanError as error:  # those who were let in before still are
            if str(error) != self._refused:
                self._refused = str(error)
                logger.error("the tokens file is left aside: %s", error)


def _bearer(metadata: Metadata) -> str:
    given = [value for key, value in metadata if key == KEY]
    if not given:
        raise Unauthenticated("missing, expected `Bearer TOKEN`", field=KEY)
    text = given[0].decode("ascii", "replace") if isinstance(given[0], bytes) else given[0]
    scheme, _, token = text.partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("expected one `Bearer TOKEN`", field=KEY)  # never quoted: it may be the token
    return token.strip()
