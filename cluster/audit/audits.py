"""The audits that a server runs for its callers: how many at once, and for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from laban.actors.errors import Exhausted
from laban.cluster.audit.auditor import Audit, AuditRequest, Forgetful
from laban.cluster.audit.calling import Calls
from laban.cluster.audit.records import AuditItem
from laban.cluster.messages import Language

MAX_AT_ONCE = 16
MAX_OF_TENANT = 4


class AuditedCalls(Calls, Protocol):
    """`cluster.dispatch.Dispatcher`."""

    @property
    def directory(self) -> Forgetful: ...


class Audits:
    """Lives in the dispatcher's event loop. An audit runs a few calls at a time, under the tenant that asked for it."""

    def __init__(
        self, dispatcher: AuditedCalls, language: Callable[[str], Language], next_rank: Callable[[], int]
    ) -> None:
        self._dispatcher, self._language, self._next_rank = dispatcher, language, next_rank
        self._active: Counter[str] = Counter()  # by tenant

    async def run(
        self, request: AuditRequest, *, tenant: str = "", max_of_tenant: int | None = None
    ) -> AsyncGenerator[AuditItem, None]:
        """What each level changes in a run, as it is found.

        Raises Exhausted for too many at once, what a submission raises for bad inputs, FailedPrecondition for a
        recording of another workflow, and what calls failed with.
        """
        limit = MAX_OF_TENANT if max_of_tenant is None else min(MAX_OF_TENANT, max_of_tenant)
        if self._active[tenant] >= limit or self._active.total() >= MAX_AT_ONCE:
            raise Exhausted(f"{self._active.total()} audits are under way, expected at most {limit} of a tenant")
        self._active[tenant] += 1
        try:
            dispatcher = self._dispatcher
            audit = Audit(request, self._language(tenant), dispatcher, dispatcher.directory, self._next_rank())
            async with aclosing(audit.items()) as items:
                async for item in items:
                    yield item
        finally:
            self._active[tenant] -= 1
