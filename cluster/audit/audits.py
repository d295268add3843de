"""The audits that a server runs for its callers: how many at once, and for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Protocol

from laban.actors.errors import Exhausted, NotBuilt, NotFound
from laban.cluster.audit.auditor import Audit, AuditRequest, Forgetful
from laban.cluster.audit.calling import Calls
from laban.cluster.audit.findings import Finding
from laban.cluster.audit.records import AuditItem
from laban.cluster.audit.resolving import Levels
from laban.cluster.audit.watching import Watch
from laban.cluster.messages import MessageBook
from laban.cluster.workflow.schema import Workflow

MAX_AT_ONCE = 16
MAX_OF_TENANT = 4


class AuditedCalls(Calls, Protocol):
    """`cluster.dispatch.Dispatcher`."""

    @property
    def directory(self) -> Forgetful: ...


class Audits:
    """Lives in the dispatcher's event loop. An audit runs a few calls at a time, under the tenant that asked for it."""

    def __init__(
        self,
        dispatcher: AuditedCalls,
        new_book: Callable[[str, str], MessageBook],
        next_rank: Callable[[], int],
        levels: Levels | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`new_book` gives an empty one of a tenant, and of a part of its encodings. Without `levels` nothing that they
        find can be kept; `watch` is told when that is cleared."""
        self._dispatcher, self._new_book, self._next_rank = dispatcher, new_book, next_rank
        self._levels, self._watch = levels, watch
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
            audit = Audit(request, partial(self._new_book, tenant), dispatcher, dispatcher.directory, self._next_rank())
            async with aclosing(audit.items()) as items:
                async for item in items:
                    yield item
        finally:
            self._active[tenant] -= 1

    async def record(self, workflow: Workflow, findings: Iterable[Finding], *, tenant: str = "") -> None:
        """Keep what was found, in the place of what was known of the same steps, reads and levels.

        Raises NotBuilt where nothing is kept, Unavailable while the journal is away.
        """
        levels = self._kept()
        await levels.knowledge.put(await levels.subject(workflow, tenant), findings)

    async def clear(self, workflow: str, *, tenant: str = "") -> None:
        """Forget all that was found of the workflows of this name. Raises NotFound if that is nothing, and as
        `record` does."""
        if not await self._kept().knowledge.clear(tenant, workflow):
            raise NotFound("no audit has found anything of such a workflow", field="workflow", value=workflow)
        if self._watch is not None:
            await self._watch.refresh()

    def _kept(self) -> Levels:
        if self._levels is None:
            raise NotBuilt("this server keeps nothing of what audits find")
        return self._levels
